// Helpers that every part of the page builds with: elements, times, words. A string becomes text, never markup.

export const byId = (id) => document.getElementById(id)

// Returns an element with properties and children. A property with a dash in its name, or `role`, is an attribute.
export const el = (name, properties = {}, ...children) => {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes('-') || key === 'role') element.setAttribute(key, value)
    else element[key] = value
  }
  element.append(...children.filter((child) => child !== null && child !== undefined))
  return element
}

// Sets an element's text only if it differs, so that neither a selection nor a screen reader loses its position.
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text
}

export const show = (element, isShown) => {
  element.hidden = !isShown
}

// Rows and cells with roles: browsers drop the implied ones when CSS lays a table out as cards, as it does on a phone. `name` is the
// name of the column.
export const cell = (name, ...values) => el('td', { role: 'cell', 'data-name': name }, ...values)
export const numeral = (name, value) => el('td', { role: 'cell', 'data-name': name, className: 'number' }, value)
export const row = (head, ...cells) => el('tr', { role: 'row' }, el('th', { role: 'rowheader', scope: 'row' }, head), ...cells)
export const table = (caption, names, rows) => {
  const heads = names.map((name) => el('th', { role: 'columnheader', scope: 'col' }, name))
  const head = el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, ...heads))
  const body = el('tbody', { role: 'rowgroup' }, ...rows)
  return el('table', { role: 'table' }, el('caption', {}, caption), head, body)
}

// Difference between the relay's clock, by the `Date` of its answers, and the browser's: ages are shown by the relay's. `Date` has whole
// seconds, so differences of up to 2 s count as none.
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

// Returns a time as its age, with the exact time as its title.
export const time = (text) => {
  if (!text) return document.createTextNode('–')
  return el('time', { dateTime: text, title: text }, ago((Date.now() + skew - Date.parse(text)) / 1000))
}

// Returns a time of day, for rows that are not drawn again and whose age would go stale.
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

// Returns a duration of the API, such as `0s` or `1200ms`, as text for a reader.
export const duration = (text) => {
  const [, number, unit] = /^(\d+)([a-z]+)$/.exec(text) ?? []
  if (unit === 'ms' && number >= 1000) return `${decimal(1).format(number / 1000)} s`
  return number ? `${number} ${unit}` : (text ?? '–')
}

// Returns a state as word, shape and colour together, so that colour alone never carries it.
const SHAPES = { good: '●', busy: '◐', warn: '▲', bad: '■' }
export const chip = (tone, word) =>
  el('span', { className: `chip ${tone}` }, el('span', { 'aria-hidden': 'true' }, SHAPES[tone]), ` ${word}`)

// Returns JSON with white space, and any other text unchanged.
export const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text
  }
}

// Announces a text to screen readers: the newest one only, and at most one in two seconds, so that each can be spoken.
let due = null
let announcedAt = 0
export const announce = (text) => {
  clearTimeout(due)
  const wait = Math.max(50, announcedAt + 2000 - Date.now())
  due = setTimeout(() => {
    announcedAt = Date.now()
    byId('announcer').textContent = text
  }, wait)
}

// Asks before an action that cannot be undone. Resolves to true if the operator agrees.
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
