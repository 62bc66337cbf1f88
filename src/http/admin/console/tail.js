// The live tail: events as they arrive, newest first. Payload, session and user of an event are in the page only while it is open.
//
// The page keeps a bounded number of events at any event rate, and parses and draws no more than it shows.

import { announce, byId, count, el, plural, pretty, say, show, size } from './page.js'
import { follow } from './stream.js'

const MAX_ROWS = 200
const MAX_WAITING = 500
const MAX_CHARACTERS = 16 * 1024 * 1024
const MAX_SHOWN = 200000 // characters of a payload, until the operator asks for all of it
const PACE = 200 // milliseconds between two drawings

const view = {}
let stop = () => {}
let waiting = [] // received and not drawn, oldest first
let rows = [] // drawn, newest first: { event, item, button }
let received = 0
let leftOut = 0
let isPaused = false
let isDue = false
let drawn = 0

export const prepare = () => {
  for (const id of ['tail-form', 'tail-product', 'tail-session', 'tail-user', 'tail-type', 'tail-pause', 'tail-list', 'tail-state', 'tail-count']) {
    view[id.slice(5)] = byId(id)
  }
  view.form.addEventListener('submit', (submission) => {
    submission.preventDefault()
    begin()
  })
  view.form.addEventListener('reset', () => setTimeout(begin)) // the fields are empty after this
  view.product.addEventListener('change', begin)
  view.pause.addEventListener('click', () => pause(!isPaused))
  view.list.addEventListener('keydown', walk)
  byId('inspector-close').addEventListener('click', closeInspector)
  byId('inspector').addEventListener('keydown', ({ key }) => key === 'Escape' && closeInspector())
}

// Offers the products in the form; the first one that appears is followed.
export const offer = (products) => {
  const offered = [...view.product.options].map(({ value }) => value)
  if (products.join('\n') === offered.join('\n')) return
  const chosen = view.product.value
  view.product.replaceChildren(...products.map((product) => el('option', {}, product)))
  if (products.includes(chosen)) view.product.value = chosen
  else begin()
}

const values = (field) => field.value.split(/[\s,]+/).filter(Boolean)

const begin = () => {
  stop()
  waiting = []
  characters = 0
  rows = []
  received = 0
  leftOut = 0
  view.list.replaceChildren()
  tell()
  if (!view.product.value) return say(byId('tail-empty'), 'There is no product to follow yet.')
  const query = new URLSearchParams()
  for (const session of values(view.session)) query.append('session_id', session)
  for (const user of values(view.user)) query.append('user_id', user)
  for (const type of values(view.type)) query.append('type', type)
  stop = follow(`/api/v1/stream/${encodeURIComponent(view.product.value)}?${query}`, { event: receive, state: turn })
}

const turn = (state, why) => {
  const words = { live: 'Connected', waiting: `Interrupted: ${why}. Trying again`, refused: `Refused: ${why}. Change the filter` }
  view.state.dataset.state = state
  say(view.state, `${words[state]}.`)
  if (state !== 'live') announce(`Live tail: ${words[state]}.`)
}

const receive = ({ kind, data, id }) => {
  if (kind === 'heartbeat') return
  received += 1
  waiting.push({ kind, data, id, at: new Date() })
  trim()
  if (!isDue) {
    isDue = true
    setTimeout(() => requestAnimationFrame(draw), Math.max(0, drawn + PACE - performance.now()))
  }
}

// Waiting events and drawn events have a bound each, in events and in characters. The oldest are left out and counted.
let characters = 0
const trim = () => {
  characters += waiting.at(-1).data.length
  while (waiting.length > MAX_WAITING || (characters > MAX_CHARACTERS && waiting.length > 1)) {
    characters -= waiting.shift().data.length
    leftOut += 1
  }
}

const draw = () => {
  isDue = false
  drawn = performance.now()
  if (!isPaused && waiting.length) {
    const fresh = waiting.slice(-MAX_ROWS)
    leftOut += waiting.length - fresh.length
    waiting = []
    characters = 0
    const news = fresh.map(row).reverse()
    rows = [...news, ...rows]
    view.list.prepend(...news.map(({ item }) => item))
    forget()
  }
  tell()
}

const forget = () => {
  let held = 0
  const most = rows.findIndex(({ event }, index) => index >= MAX_ROWS || (held += event.data.length) > MAX_CHARACTERS)
  if (most > 0) {
    for (const { item, button } of rows.splice(most)) {
      const hadFocus = button === document.activeElement
      item.remove()
      if (hadFocus) rows.at(-1).button.focus()
    }
  }
  // The list is one stop of the tab key (roving tabindex).
  if (!rows.some(({ button }) => button.tabIndex === 0)) rows[0].button.tabIndex = 0
}

const row = (event) => {
  const type = event.kind === 'gap' ? 'gap' : typeOf(event.data)
  const at = event.at.toLocaleTimeString('en-GB') + `.${String(event.at.getMilliseconds()).padStart(3, '0')}`
  const parts = [
    el('time', { dateTime: event.at.toISOString(), title: event.at.toISOString() }, at),
    el('span', { className: 'type' }, type === 'gap' ? '▲ gap' : type),
    el('span', { className: 'id' }, event.id),
    el('span', { className: 'size' }, size(event.data.length)),
  ]
  const button = el('button', { type: 'button', className: type === 'gap' ? 'event gap' : 'event', tabIndex: -1 })
  button.append(...parts.flatMap((part) => [part, ' ']))
  button.addEventListener('click', () => inspect(event, type, button))
  return { event, button, item: el('li', {}, button) }
}

const typeOf = (data) => {
  try {
    return String(JSON.parse(data).type).slice(0, 80)
  } catch {
    return 'not JSON'
  }
}

// Moves the focus in the list: arrows, Home and End.
const walk = (press) => {
  const at = rows.findIndex(({ button }) => button === document.activeElement)
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[press.key]
  if (at < 0 || to === undefined) return
  press.preventDefault()
  const next = rows[Math.min(Math.max(to, 0), rows.length - 1)].button
  for (const { button } of rows) button.tabIndex = -1
  next.tabIndex = 0
  next.focus()
}

const pause = (wanted) => {
  isPaused = wanted
  say(view.pause, isPaused ? 'Resume' : 'Pause')
  announce(isPaused ? 'The live tail is paused; events are still received.' : 'The live tail goes on.')
  draw()
}

const tell = () => {
  const parts = [`${plural(received, 'event')} received`]
  if (isPaused) parts.unshift(`Paused: ${count(waiting.length)} waiting`)
  if (leftOut) parts.push(`${count(leftOut)} left out: more than the list holds`)
  say(view.count, parts.join(', '))
  const hint = values(view.session).length + values(view.user).length + values(view.type).length
    ? 'No event has matched the filter since it was set. Clear it to see all events.'
    : 'Waiting for the next event. Events show here as they arrive; earlier ones are not shown.'
  say(byId('tail-empty'), hint)
  show(byId('tail-empty'), rows.length === 0)
}

let opened = null // the button whose event is open

const inspect = (event, type, button) => {
  opened?.removeAttribute('aria-current')
  opened = button
  button.setAttribute('aria-current', 'true')
  let fields = {}
  try {
    fields = JSON.parse(event.data)
  } catch {
    // Not JSON: shown unchanged.
  }
  say(byId('inspector-id'), event.id || '–')
  say(byId('inspector-type'), type)
  say(byId('inspector-session'), typeof fields?.session_id === 'string' ? fields.session_id : '–')
  say(byId('inspector-user'), typeof fields?.user_id === 'string' ? fields.user_id : '–')
  say(byId('inspector-at'), event.at.toISOString())
  say(byId('inspector-size'), `${count(event.data.length)} characters`)
  const text = pretty(event.data)
  const isLong = text.length > MAX_SHOWN
  const payload = byId('inspector-payload')
  payload.textContent = isLong ? text.slice(0, MAX_SHOWN) : text
  const more = byId('inspector-more')
  say(more, `Show the other ${count(text.length - MAX_SHOWN)} characters`)
  show(more, isLong)
  more.onclick = () => {
    payload.textContent = text
    show(more, false)
    payload.focus()
  }
  show(byId('inspector'), true)
  byId('inspector-title').focus()
}

const closeInspector = () => {
  show(byId('inspector'), false)
  for (const part of ['id', 'type', 'session', 'user', 'at', 'size', 'payload']) byId(`inspector-${part}`).textContent = ''
  byId('inspector-more').onclick = null // its closure holds the whole payload
  opened?.removeAttribute('aria-current')
  const back = opened?.isConnected ? opened : rows[0]?.button
  opened = null
  ;(back ?? view.pause).focus()
}
