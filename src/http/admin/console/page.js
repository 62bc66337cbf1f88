// What every part of the page builds with: elements, times, words. Strings become text, never markup.

export const byId = (id) => document.getElementById(id)

// An element with properties and children; a property with a dash in its name, or `role`, is an attribute.
export const el = (name, properties = {}, ...children) => {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes('-') || key === 'role') element.setAttribute(key, value)
    else element[key] = value
  }
  element.append(...children.filter((child) => child !== null && child !== undefined))
  return element
}

// Only what differs is touched, so that neither a selection nor a screen reader loses its place.
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text
}

export const show = (element, isShown) => {
  element.hidden = !isShown
}

// Rows and cells say what they are: laid out as cards on a phone, they would otherwise lose it. `name` is the column's.
export const cell = (name, ...values) => el('td', { role: 'cell', 'data-name': name }, ...values)
export const numeral = (name, value) => el('td', { role: 'cell', 'data-name': name, className: 'number' }, value)
export const row = (head, ...cells) => el('tr', { role: 'row' }, el('th', { role: 'rowheader', scope: 'row' }, head), ...cells)
export const table = (caption, names, rows) => {
  const heads = names.map((name) => el('th', { role: 'columnheader', scope: 'col' }, name))
  const head = el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, ...heads))
  const body = el('tbody', { role: 'rowgroup' }, ...rows)
  return el('table', { role: 'table' }, el('caption', {}, caption), head, body)
}

// The relay's clock, as far as `Date` tells it: ages are its own, whatever the clock of the browser says.
let skew = 0
export const learnTime = (date) => {
  const difference = Date.parse(date) - Date.now()
  if (!Number.isNaN(difference)) skew = Math.abs(difference) > 2000 ? difference : 0
}

const ago = (seconds) => {
  if (seconds < -1) return `in ${Math.ceil(-seconds)} s`
  if (seconds < 1) return 'now'
  if (seconds < 120) return `${Math.floor(seconds)} s ago`
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ago`
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} days ago`
}

// A time as its age, with the exact one beneath.
export const time = (text) => {
  if (!text) return document.createTextNode('–')
  return el('time', { dateTime: text, title: text }, ago((Date.now() + skew - Date.parse(text)) / 1000))
}

// A time as the clock has shown it, for what is not drawn anew.
export const clock = (text) => {
  const at = new Date(text)
  const day = at.toDateString() === new Date().toDateString() ? '' : `${at.getDate()} ${at.toLocaleString('en', { month: 'short' })} `
  return el('time', { dateTime: text, title: text }, `${day}${at.toLocaleTimeString('en-GB')}`)
}

const decimal = (digits) => new Intl.NumberFormat('en', { maximumFractionDigits: digits })
export const count = (number) => decimal(0).format(number)
export const rate = (number) => (number === null ? '–' : decimal(number < 100 ? 1 : 0).format(number))
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`

export const size = (bytes) => {
  if (bytes < 1000) return `${bytes} B`
  return bytes < 1e6 ? `${decimal(1).format(bytes / 1e3)} kB` : `${decimal(1).format(bytes / 1e6)} MB`
}

// A duration of the API, such as `0s` or `1200ms`, as it reads well.
export const duration = (text) => {
  const [, number, unit] = /^(\d+)([a-z]+)$/.exec(text) ?? []
  if (unit === 'ms' && number >= 1000) return `${decimal(1).format(number / 1000)} s`
  return number ? `${number} ${unit}` : (text ?? '–')
}

// A state as word, shape and colour: none of them alone.
const SHAPES = { good: '●', busy: '◐', warn: '▲', bad: '■' }
export const chip = (tone, word) =>
  el('span', { className: `chip ${tone}` }, el('span', { 'aria-hidden': 'true' }, SHAPES[tone]), ` ${word}`)

// JSON with white space, and anything else as it is.
export const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text
  }
}

// Tells a screen reader: the newest of what there is to tell, and not more often than somebody can listen to.
let due = null
let told = 0
export const announce = (text) => {
  clearTimeout(due)
  const wait = Math.max(50, told + 2000 - Date.now())
  due = setTimeout(() => {
    told = Date.now()
    byId('announcer').textContent = text
  }, wait)
}

// Asks before something that cannot be taken back. The answer is whether to do it.
export const confirmed = (title, text, action) => {
  const dialog = byId('confirm')
  byId('confirm-title').textContent = title
  byId('confirm-text').textContent = text
  byId('confirm-yes').textContent = action
  dialog.returnValue = ''
  dialog.showModal()
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true })
  })
}
