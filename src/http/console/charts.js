// Lines over the last minutes as SVG, with a sentence and a table that say the same.

import { byId, el, say } from './page.js'

const SPAN = 600 // seconds
const WIDTH = 560
const HEIGHT = 170
const EDGE = { left: 46, right: 10, top: 12, bottom: 26 }
const svg = (name, attributes, text = '') => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  element.textContent = text
  return element
}

// The smallest of 1, 2, 5, 10 … that is not below.
const ceiling = (value) => {
  const power = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 5, 10].map((step) => step * power).find((bound) => bound >= value * 0.999)
}

// `lines` names them in the order of the values; `tell` makes the sentence of the points.
export class Chart {
  constructor(id, { unit, least, lines, tell, write }) {
    Object.assign(this, { unit, least, lines, tell, write, points: [] })
    this.figure = byId(id)
    this.table = this.figure.querySelector('details')
    this.table.addEventListener('toggle', () => this.fillTable())
  }

  // One value a line, null where there is none.
  add(at, values) {
    this.points.push({ at, values })
    const first = this.points.findIndex((point) => point.at > at - SPAN * 1000)
    this.points.splice(0, first)
    this.draw(at)
    say(this.figure.querySelector('.sentence'), this.tell(this.points))
    this.fillTable()
  }

  draw(now) {
    const known = this.points.flatMap(({ values }) => values).filter((value) => value !== null)
    const top = ceiling(Math.max(this.least, ...known))
    const x = (at) => EDGE.left + (WIDTH - EDGE.left - EDGE.right) * (1 - (now - at) / (SPAN * 1000))
    const y = (value) => HEIGHT - EDGE.bottom - (HEIGHT - EDGE.top - EDGE.bottom) * (value / top)
    const marks = [0, top / 2, top].flatMap((value) => [
      svg('line', { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(value), y2: y(value), class: 'grid' }),
      svg('text', { x: EDGE.left - 6, y: y(value) + 4, 'text-anchor': 'end' }, this.write(value)),
    ])
    const minutes = [10, 5, 0].map((minute) => {
      const anchor = { 10: 'start', 5: 'middle', 0: 'end' }[minute]
      const text = minute ? `−${minute} min` : 'now'
      return svg('text', { x: x(now - minute * 60000), y: HEIGHT - 6, 'text-anchor': anchor }, text)
    })
    const paths = this.lines.map((_, line) => svg('path', { d: this.path(line, x, y), class: `line line-${line}` }))
    this.figure.querySelector('svg').replaceChildren(...marks, ...minutes, ...paths)
  }

  // Broken where a value is missing; a lone one is a dot.
  path(line, x, y) {
    let isDrawing = false
    const steps = this.points.map(({ at, values }) => {
      const value = values[line]
      const step = value === null ? '' : `${isDrawing ? 'L' : 'M'}${x(at).toFixed(1)} ${y(value).toFixed(1)}${isDrawing ? '' : 'h0.1'}`
      isDrawing = value !== null
      return step
    })
    return steps.join('')
  }

  // By minutes, and only while somebody looks at it.
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
        return el('td', {}, known.length ? this.write(Math.max(...known)) : '–')
      })
      const name = minute ? `${minute} to ${minute + 1} min ago` : 'the last minute'
      return el('tr', {}, el('th', { scope: 'row' }, name), ...cells)
    })
    this.table.querySelector('tbody').replaceChildren(...rows)
  }
}
