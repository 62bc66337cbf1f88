// The console: reads the relay every other second and shows what it says. The parts are in files of their own.

import * as api from './api.js'
import { Chart } from './charts.js'
import { perSecond, quantile, read } from './metrics.js'
import { announce, byId, chip, count, duration, el, rate, say, show, size, time } from './page.js'
import * as tail from './tail.js'
import * as webhooks from './webhooks.js'

const PACE = 2000 // milliseconds between two readings
const STATES = {
  connected: ['good', 'Connected'],
  connecting: ['busy', 'Connecting'],
  backing_off: ['warn', 'Backing off'],
  refused: ['bad', 'Refused'],
}

const cell = (name, ...values) => el('td', { 'data-name': name }, ...values)
const head = (text) => el('th', { scope: 'row' }, text)

const upstream = (one, perSecond) => {
  const [tone, word] = STATES[one.state] ?? ['warn', one.state]
  const problem = one.problem ? [el('span', { className: 'problem' }, one.problem)] : []
  return el(
    'tr',
    {},
    head(one.product_id),
    cell('State', chip(tone, word), ...problem),
    cell('Since', time(one.since)),
    cell('Last event', time(one.last_event)),
    cell('Heartbeat', time(one.last_heartbeat)),
    cell('Lag', duration(one.lag)),
    cell('Events/s', perSecond),
  )
}

const audience = (products, subscribers) =>
  products.map((product) => {
    const { sse = 0, ws = 0 } = subscribers[product] ?? {}
    const cells = [['SSE', sse], ['WebSocket', ws], ['All', sse + ws]]
    return el('tr', {}, head(product), ...cells.map(([name, number]) => cell(name, count(number))))
  })

// A frame is a payload, too: what it held shows when it is asked for.
let framesShown = null
const frames = (rejected) => {
  const key = JSON.stringify(rejected.map(({ at, product_id: product }) => [at, product]))
  if (key === framesShown) return
  framesShown = key
  show(byId('rejected-empty'), rejected.length === 0)
  show(byId('rejected-table'), rejected.length > 0)
  const rows = rejected.map(({ product_id: product, reason, at, bytes, excerpt }) => {
    const text = el('pre', { tabIndex: 0, role: 'region', 'aria-label': `Frame of ${at}` })
    const open = el('details', {}, el('summary', {}, 'Show'), text)
    open.addEventListener('toggle', () => (text.textContent = open.open ? excerpt : ''))
    const shown = excerpt === null ? 'not kept' : open
    const length = bytes === null ? 'over the limit' : size(bytes)
    return el('tr', {}, head(at), cell('Product', product), cell('Reason', reason), cell('Size', length), cell('Beginning', shown))
  })
  byId('rejected').replaceChildren(...rows)
}

let before = null
let readings = []
const measure = (text) => {
  const reading = read(text)
  readings = [...readings.slice(-5), reading]
  const previous = before
  before = reading
  if (!previous) return () => null
  const at = Date.now()
  charts.events.add(at, [perSecond(previous, reading)])
  const lag = (share) => quantile(readings[0], reading, share)
  charts.lag.add(at, [lag(0.5), lag(0.99)])
  return (product) => perSecond(readings[0], reading, product)
}

const sum = (numbers) => numbers.reduce((one, other) => one + other, 0)

const tiles = (status, all) => {
  const { upstreams, subscribers, webhooks } = status
  const connected = upstreams.filter(({ state }) => state === 'connected').length
  say(byId('tile-upstreams'), `${connected} of ${upstreams.length}`)
  byId('tile-upstreams').dataset.tone = connected === upstreams.length ? 'good' : 'warn'
  say(byId('tile-rate'), rate(all))
  say(byId('tile-subscribers'), count(sum(Object.values(subscribers).flatMap((one) => Object.values(one)))))
  say(byId('tile-pending'), count(sum(webhooks.map(({ pending }) => pending))))
  const dead = sum(webhooks.map(({ dead }) => dead))
  say(byId('tile-dead'), count(dead))
  byId('tile-dead').dataset.tone = dead ? 'warn' : 'good'
}

// What changed is told once; what stays is not repeated.
let statesTold = null
const tellStates = (upstreams) => {
  const states = new Map(upstreams.map(({ product_id: product, state }) => [product, STATES[state]?.[1] ?? state]))
  const changed = [...states].filter(([product, word]) => statesTold && statesTold.get(product) !== word)
  if (changed.length) announce(`Upstream ${changed.map(([product, word]) => `${product}: ${word}`).join('; ')}`)
  statesTold = states
}

const store = ({ store }) => {
  const isDegraded = store?.degraded ?? false
  show(byId('store'), isDegraded || (store?.recovering ?? false))
  say(byId('store'), isDegraded
    ? '▲ The store keeps less than it promises: look at the disk of log.data_dir and at the relay’s log.'
    : '◐ The store is being checked; older events show when that is done.')
}

const refresh = async () => {
  const [status, { webhooks: hooks }, metrics, { rejected }] = await Promise.all([
    api.get('/api/v1/status'),
    api.get('/api/v1/webhooks'),
    api.text('/metrics'),
    api.get('/api/v1/rejected'),
  ])
  const perSecondOf = measure(metrics)
  const products = [...new Set([...Object.keys(status.log), ...status.upstreams.map((one) => one.product_id)])].sort()
  byId('about').replaceChildren(`Version ${status.version}, started `, time(status.started_at))
  tiles(status, perSecondOf())
  show(byId('upstreams-empty'), status.upstreams.length === 0)
  show(byId('upstreams-table'), status.upstreams.length > 0)
  byId('upstreams').replaceChildren(...status.upstreams.map((one) => upstream(one, rate(perSecondOf(one.product_id)))))
  byId('subscribers').replaceChildren(...audience(products, status.subscribers))
  const isAlone = Object.keys(status.subscribers).length === 0
  show(byId('subscribers-empty'), isAlone)
  store(status)
  tellStates(status.upstreams)
  webhooks.draw(hooks)
  frames(rejected)
  tail.offer(products)
}

// Whether the relay answers, in words that do not change with every attempt.
let lostAt = null
const reached = () => {
  if (lostAt) announce('The relay answers again.')
  lostAt = null
  show(byId('lost'), false)
  byId('link').replaceChildren(chip('good', 'Live'))
  document.body.classList.remove('stale')
}
const lost = (error) => {
  lostAt ??= new Date().toLocaleTimeString('en-GB')
  const why = error instanceof api.Refusal ? error.message : 'it cannot be reached'
  const text = `The relay has not answered since ${lostAt} (${why}). What you see is from before; the page goes on by itself.`
  if (byId('lost').hidden) announce(text)
  say(byId('lost-text'), text)
  show(byId('lost'), true)
  byId('link').replaceChildren(chip('warn', 'Not reached'))
  document.body.classList.add('stale')
}

const milliseconds = (value) => (value === null ? '–' : `${(value * 1000).toPrecision(2).replace(/\.0$/, '')} ms`)
const charts = {
  events: new Chart('chart-events', {
    least: 1,
    lines: ['received'],
    write: rate,
    tell: (points) => {
      const known = points.map(({ values: [value] }) => value).filter((value) => value !== null)
      const now = points.at(-1).values[0]
      return known.length ? `Now ${rate(now)} events/s, at the most ${rate(Math.max(...known))} since the page was opened.` : ''
    },
  }),
  lag: new Chart('chart-lag', {
    least: 0.001,
    lines: ['half', 'most'],
    write: (value) => Number((value * 1000).toPrecision(2)).toString(),
    tell: (points) => {
      const [half, most] = points.at(-1).values
      if (half === null) return 'Nothing was delivered live in the last seconds: there is no lag to show.'
      return `Now half of the deliveries within ${milliseconds(half)}, 99 % within ${milliseconds(most)}.`
    },
  }),
}

const run = async () => {
  for (;;) {
    try {
      await refresh()
      reached()
    } catch (error) {
      lost(error)
    }
    await new Promise((resolve) => setTimeout(resolve, lostAt ? PACE / 2 : PACE))
  }
}

api.prepare()
tail.prepare()
say(byId('webhooks-how'), `curl -X POST ${location.origin}/api/v1/webhooks -d @webhook.json`)
run()
