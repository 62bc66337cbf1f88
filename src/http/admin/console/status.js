// Shows `/api/v1/status`: the tiles, the upstreams, the subscribers, the store.

import { now } from './rates.js'
import { announce, byId, cell, chip, count, duration, el, numeral, rate, row, say, show, time } from './page.js'

const STATES = {
  connected: ['good', 'Connected'],
  connecting: ['busy', 'Connecting'],
  backing_off: ['warn', 'Backing off'],
  refused: ['bad', 'Refused'],
}

// Draws the status, and returns the ids of all products.
export const draw = (status) => {
  const products = [...new Set([...Object.keys(status.log), ...status.upstreams.map((one) => one.product_id)])].sort()
  byId('about').replaceChildren(`Version ${status.version}, started `, time(status.started_at))
  tiles(status)
  show(byId('upstreams-empty'), status.upstreams.length === 0)
  show(byId('upstreams-table'), status.upstreams.length > 0)
  byId('upstreams').replaceChildren(...status.upstreams.map(upstream))
  byId('subscribers').replaceChildren(...products.map((product) => subscribersOf(product, status.subscribers[product])))
  show(byId('subscribers-empty'), Object.keys(status.subscribers).length === 0)
  store(status)
  announceChanges(status.upstreams)
  return products
}

const sum = (numbers) => numbers.reduce((one, other) => one + other, 0)

const tiles = ({ upstreams, subscribers, webhooks }) => {
  const connected = upstreams.filter(({ state }) => state === 'connected').length
  say(byId('tile-upstreams'), `${connected} of ${upstreams.length}`)
  byId('tile-upstreams').dataset.tone = connected === upstreams.length ? 'good' : 'warn'
  say(byId('tile-rate'), rate(now()))
  say(byId('tile-subscribers'), count(sum(Object.values(subscribers).flatMap((one) => Object.values(one)))))
  say(byId('tile-pending'), count(sum(webhooks.map(({ pending }) => pending))))
  const dead = sum(webhooks.map(({ dead }) => dead))
  say(byId('tile-dead'), count(dead))
  byId('tile-dead').dataset.tone = dead ? 'warn' : 'good'
}

const upstream = (one) => {
  const [tone, word] = STATES[one.state] ?? ['warn', one.state]
  const problem = one.problem ? [el('span', { className: 'problem' }, one.problem)] : []
  return row(
    one.product_id,
    cell('State', chip(tone, word), ...problem),
    cell('Since', time(one.since)),
    cell('Last event', time(one.last_event)),
    cell('Heartbeat', time(one.last_heartbeat)),
    numeral('Lag', duration(one.lag)),
    numeral('Events/s', rate(now(one.product_id))),
  )
}

const subscribersOf = (product, { sse = 0, ws = 0 } = {}) =>
  row(product, numeral('SSE', count(sse)), numeral('WebSocket', count(ws)), numeral('All', count(sse + ws)))

// Announces each change of an upstream's state once.
let announced = null
const announceChanges = (upstreams) => {
  const states = new Map(upstreams.map(({ product_id: product, state }) => [product, STATES[state]?.[1] ?? state]))
  const changed = [...states].filter(([product, word]) => announced && announced.get(product) !== word)
  if (changed.length) announce(`Upstream ${changed.map(([product, word]) => `${product}: ${word}`).join('; ')}`)
  announced = states
}

const store = ({ store }) => {
  const isDegraded = store?.degraded ?? false
  show(byId('store'), isDegraded || (store?.recovering ?? false))
  say(byId('store'), isDegraded
    ? '▲ The store is degraded and keeps less than configured: check the disk of log.data_dir and the relay’s log.'
    : '◐ The store is being checked; older events are available after that.')
}
