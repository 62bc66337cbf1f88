// Rates and quantiles from /metrics. Counters only grow, so each value is the difference between two readings.

const SAMPLE = /^(\w+)(?:\{(.*)\})? (\S+)$/
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g
const RECEIVED = ['autoplay_relay_upstream_events_total', 'autoplay_relay_published_events_total']
const LAG = 'autoplay_relay_delivery_lag_seconds_bucket'

// Returns the samples of one reading that the console needs.
export const read = (text) => {
  const reading = { at: performance.now(), received: new Map(), lag: new Map() }
  for (const line of text.split('\n')) {
    if (!line.startsWith('autoplay_relay_')) continue
    const [, name, labels = '', value] = SAMPLE.exec(line) ?? []
    const isLag = name === LAG
    if (!isLag && !RECEIVED.includes(name)) continue
    const label = Object.fromEntries([...labels.matchAll(LABEL)].map(([, key, text]) => [key, text]))
    if (isLag) add(reading.lag, label.le === '+Inf' ? Infinity : Number(label.le), Number(value))
    else add(reading.received, label.product_id, Number(value))
  }
  return reading
}

const add = (map, key, value) => map.set(key, (map.get(key) ?? 0) + value)
const sum = (map) => [...map.values()].reduce((one, other) => one + other, 0)

// Returns events per second between two readings, of one product or of all; null if the relay restarted in between.
export const perSecond = (from, to, product) => {
  const total = ({ received }) => (product === undefined ? sum(received) : (received.get(product) ?? 0))
  const more = total(to) - total(from)
  return more < 0 || to.at <= from.at ? null : (more * 1000) / (to.at - from.at)
}

// Returns the quantile of the delivery lag between two readings, in seconds, interpolated within its bucket; null without deliveries.
export const quantile = (from, to, share) => {
  const bounds = [...to.lag.keys()].sort((one, other) => one - other)
  const counts = bounds.map((bound) => to.lag.get(bound) - (from.lag.get(bound) ?? 0))
  const all = counts.at(-1)
  if (!(all > 0) || counts.some((number) => number < 0)) return null
  const index = counts.findIndex((number) => number >= share * all)
  const below = index > 0 ? counts[index - 1] : 0
  const low = index > 0 ? bounds[index - 1] : 0
  const high = Number.isFinite(bounds[index]) ? bounds[index] : low
  return low + ((high - low) * (share * all - below)) / (counts[index] - below || 1)
}
