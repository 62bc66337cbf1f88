// The last frames that could not be understood. A frame is a payload, too: what it held shows when it is asked for.

import { byId, cell, clock, el, numeral, row, show, size } from './page.js'

let drawn = null

export const draw = ({ rejected }) => {
  // Drawn anew only if they have changed: one that is open stays so.
  const key = JSON.stringify(rejected.map(({ at, product_id: product }) => [at, product]))
  if (key === drawn) return
  drawn = key
  show(byId('rejected-empty'), rejected.length === 0)
  show(byId('rejected-table'), rejected.length > 0)
  byId('rejected').replaceChildren(...rejected.map(frame))
}

const frame = ({ product_id: product, reason, at, bytes, excerpt }) => {
  const text = el('pre', { tabIndex: 0, role: 'region', 'aria-label': `Frame of ${at}` })
  const open = el('details', {}, el('summary', {}, 'Show'), text)
  open.addEventListener('toggle', () => (text.textContent = open.open ? excerpt : ''))
  const length = bytes === null ? 'over the limit' : size(bytes)
  const shown = excerpt === null ? 'not kept' : open
  return row(clock(at), cell('Product', product), cell('Reason', reason), numeral('Size', length), cell('Beginning', shown))
}
