// Event rate and delivery lag: two charts, and the rates that the other parts show.

import { Chart, decades, linear } from './charts.js'
import { perSecond, quantile, read } from './metrics.js'
import { rate } from './page.js'

const SMOOTHED = 5 // readings, one every two seconds

let readings = []

// Adds a reading of /metrics and draws the charts.
export const draw = (text) => {
  const reading = read(text)
  const previous = readings.at(-1)
  readings = [...readings.slice(-SMOOTHED), reading]
  if (!previous) return
  const at = Date.now()
  events.add(at, [perSecond(previous, reading)])
  const lagOf = (share) => quantile(readings[0], reading, share)
  lag.add(at, [lagOf(0.5), lagOf(0.99)])
}

// Returns the present events per second, of one product or of all; null until two readings are there.
export const now = (product) => (readings.length > 1 ? perSecond(readings[0], readings.at(-1), product) : null)

const milliseconds = (seconds) => Number((seconds * 1000).toPrecision(2)).toString()

const events = new Chart('chart-events', {
  scale: linear(1),
  lines: ['received'],
  write: rate,
  tell: (points) => {
    const known = points.map(({ values: [value] }) => value).filter((value) => value !== null)
    const latest = points.at(-1).values[0]
    return known.length ? `Now ${rate(latest)} a second, at most ${rate(Math.max(...known))}.` : ''
  },
})

const lag = new Chart('chart-lag', {
  scale: decades(0.001, 0.1),
  lines: ['half', 'most'],
  write: milliseconds,
  tell: (points) => {
    const [half, most] = points.at(-1).values
    if (half === null) return 'No event was delivered live in the last seconds, so there is no lag to show.'
    return `Now half of the deliveries within ${milliseconds(half)} ms, 99 % within ${milliseconds(most)} ms.`
  },
})
