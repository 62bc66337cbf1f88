// The latest rejected frames. A frame may contain personal data like a payload, so its text is in the page only while it is open.

import { byId, cell, clock, el, numeral, row, show, size } from './page.js'

let drawn = null

export const draw = ({ rejected }) => {
  // Drawn again only after a change, so that an open frame stays open.
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
