// Line charts of the last minutes as SVG, each with a sentence and a table of the same values.

import { byId, numeral, row, say } from './page.js'

const MINUTES = [1, 2, 5, 10] // spans of the time axis: the smallest one that shows every point is taken
const MAX_AGE = MINUTES.at(-1) * 60000
const HEIGHT = 168
const EDGE = { left: 44, right: 8, top: 12, bottom: 26 }
const svg = (name, attributes, text = '') => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  element.textContent = text
  return element
}

// Scales. A scale returns the values of the grid lines, and the height of a value from 0 to 1.
export const linear = (least) => (known) => {
  const most = Math.max(least, ...known)
  const power = 10 ** Math.floor(Math.log10(most))
  const top = [1, 2, 5, 10].map((step) => step * power).find((bound) => bound >= most * 0.999)
  return { levels: [0, top / 2, top], height: (value) => value / top }
}

// Logarithmic, for values that differ by orders of magnitude: a grid line for each power of ten.
export const decades = (least, most) => (known) => {
  const low = Math.floor(Math.log10(Math.max(1e-4, Math.min(least, ...known))))
  const high = Math.ceil(Math.log10(Math.max(most, ...known)))
  const levels = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index))
  return { levels, height: (value) => Math.max(0, (Math.log10(Math.max(value, 1e-9)) - low) / (high - low)) }
}

const before = (minutes) => {
  if (minutes === 0) return 'now'
  return minutes < 1 ? `−${minutes * 60} s` : `−${minutes} min`
}

// `lines` names the lines in the order of the values; `tell` returns the sentence for the points.
export class Chart {
  constructor(id, { scale, lines, tell, write }) {
    Object.assign(this, { scale, lines, tell, write, points: [] })
    this.figure = byId(id)
    this.canvas = this.figure.querySelector('svg')
    new ResizeObserver(() => this.draw(this.points.at(-1)?.at ?? Date.now())).observe(this.canvas)
    this.table = this.figure.querySelector('details')
    this.names = [...this.table.querySelectorAll('th')].slice(1).map(({ textContent }) => textContent)
    this.table.addEventListener('toggle', () => this.fillTable())
  }

  // Adds a point: one value per line, null for a missing one.
  add(at, values) {
    this.points.push({ at, values })
    const first = this.points.findIndex((point) => point.at > at - MAX_AGE)
    this.points.splice(0, first)
    this.draw(at)
    say(this.figure.querySelector('.sentence'), this.tell(this.points))
    this.fillTable()
  }

  draw(now) {
    const width = Math.max(this.canvas.clientWidth, 200)
    const known = this.points.flatMap(({ values }) => values).filter((value) => value !== null)
    const { levels, height } = this.scale(known)
    const age = now - (this.points[0]?.at ?? now)
    const minutes = MINUTES.find((span) => age <= span * 60000) ?? MINUTES.at(-1)
    const x = (at) => EDGE.left + (width - EDGE.left - EDGE.right) * (1 - (now - at) / (minutes * 60000))
    const y = (value) => HEIGHT - EDGE.bottom - (HEIGHT - EDGE.top - EDGE.bottom) * height(value)
    const ladder = levels.flatMap((value, index) => [
      svg('line', { x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value), class: index ? 'grid' : 'floor' }),
      svg('text', { x: EDGE.left - 8, y: y(value) + 4, 'text-anchor': 'end' }, this.write(value)),
    ])
    const times = [[minutes, 'start'], [minutes / 2, 'middle'], [0, 'end']].map(([minute, anchor]) =>
      svg('text', { x: x(now - minute * 60000), y: HEIGHT - 6, 'text-anchor': anchor }, before(minute)))
    this.canvas.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`)
    this.canvas.replaceChildren(...ladder, ...times, ...this.lines.flatMap((_, line) => this.curve(line, x, y)))
  }

  // Returns the line, a dot at its end and at each isolated value, and for the first line the area beneath it.
  curve(line, x, y) {
    const parts = this.runs(line).map((run) => run.map(({ at, value }) => [x(at).toFixed(1), y(value).toFixed(1)]))
    const through = (run) => `M${run.map((point) => point.join(' ')).join('L')}`
    const under = (run) => `${through(run)}V${HEIGHT - EDGE.bottom}H${run[0][0]}Z`
    const ground = line === 0 ? [svg('path', { d: parts.map(under).join(''), class: 'ground' })] : []
    const dots = parts.filter((run, index) => run.length === 1 || index === parts.length - 1)
    const circles = dots.map((run) => run.at(-1)).map(([cx, cy]) => svg('circle', { cx, cy, r: 3, class: `dot-${line}` }))
    return [...ground, svg('path', { d: parts.map(through).join(''), class: `line-${line}` }), ...circles]
  }

  // Returns the points of a line, split where a value is missing.
  runs(line) {
    const runs = [[]]
    for (const { at, values } of this.points) {
      if (values[line] === null) runs.push([])
      else runs.at(-1).push({ at, value: values[line] })
    }
    return runs.filter((run) => run.length)
  }

  // Fills the table, one row per minute, and only while it is open.
  fillTable() {
    if (!this.table.open) return
    const minutes = new Map()
    for (const { at, values } of this.points) {
      const minute = Math.floor((this.points.at(-1).at - at) / 60000)
      minutes.set(minute, [...(minutes.get(minute) ?? []), values])
    }
    const rows = [...minutes].reverse().map(([minute, several]) => {
      const cells = this.lines.map((_, line) => {
        const known = several.map((values) => values[line]).filter((value) => value !== null)
        return numeral(this.names[line], known.length ? this.write(Math.max(...known)) : '–')
      })
      return row(minute ? `${minute} to ${minute + 1} min ago` : 'the last minute', ...cells)
    })
    this.table.querySelector('tbody').replaceChildren(...rows)
  }
}
