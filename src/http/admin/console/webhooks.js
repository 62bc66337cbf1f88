// Webhooks: the state of each, its dead letters, and the operator's actions. A card is kept as long as its webhook, so that focus stays.

import { get, post } from './api.js'
import { announce, byId, cell, chip, confirmed, count, el, plural, pretty, row, say, show, table, time } from './page.js'

const MAX_DEAD_LETTERS = 20
const STATES = {
  active: ['good', 'Active'],
  throttled: ['busy', 'Throttled'],
  open: ['warn', 'Held back'],
  disabled: ['bad', 'Disabled'],
}
const cards = new Map()

export const draw = ({ webhooks }) => {
  show(byId('webhooks-empty'), webhooks.length === 0)
  const known = new Set(webhooks.map(({ id }) => id))
  for (const [id, card] of cards) {
    if (known.has(id)) continue
    card.element.remove()
    cards.delete(id)
  }
  for (const webhook of webhooks) {
    if (!cards.has(webhook.id)) {
      const card = new Card(webhook.id)
      cards.set(webhook.id, card)
      byId('webhooks-list').append(card.element)
    }
    cards.get(webhook.id).update(webhook)
  }
}

class Card {
  constructor(id) {
    this.id = id
    this.path = `/api/v1/webhooks/${encodeURIComponent(id)}`
    this.state = el('span')
    this.facts = el('dl', { className: 'facts' })
    this.problem = el('p', { className: 'problem', hidden: true })
    this.result = el('p', { className: 'result' })
    this.deadLetters = el('div', { className: 'letters', hidden: true })
    this.test = this.button('Send test', () => this.sendTest())
    this.enable = this.button('Enable', () => this.sendEnable())
    this.look = this.button('Show dead letters', () => this.toggleDeadLetters())
    this.again = this.button('Redeliver all', () => this.redeliverAll())
    this.look.setAttribute('aria-expanded', 'false')
    const head = el('div', { className: 'card-head' }, el('h3', {}, id), this.state)
    const buttons = el('div', { className: 'buttons' }, this.test, this.enable, this.look, this.again)
    this.element = el('li', { className: 'card' }, head, this.facts, this.problem, buttons, this.result, this.deadLetters)
  }

  button(text, action) {
    const button = el('button', { type: 'button', 'aria-label': `${text}: ${this.id}` }, text)
    button.addEventListener('click', () => this.during(button, action))
    return button
  }

  // Runs one action at a time, and shows its outcome beside the button.
  async during(button, action) {
    if (button.ariaDisabled === 'true') return
    button.ariaDisabled = 'true' // `disabled` would take the focus away
    try {
      const outcome = await action()
      if (outcome) this.tell(outcome)
      this.refresh().catch(() => {}) // the next regular reading shows why
    } catch (error) {
      this.tell(`That did not work: ${error.message}.`)
    } finally {
      button.ariaDisabled = null
    }
  }

  // Reads this webhook at once, before the next regular reading.
  async refresh() {
    this.update(await get(this.path))
  }

  tell(text) {
    say(this.result, text)
    announce(`Webhook ${this.id}: ${text}`)
  }

  update(webhook) {
    const { state, until, problem, pending, oldest_pending_at: oldest, dead, url, product_id: product, types } = webhook
    if (this.shown !== state) this.state.replaceChildren(chip(...(STATES[state] ?? ['warn', state])))
    this.shown = state
    const fact = (name, ...values) => el('div', {}, el('dt', {}, name), el('dd', {}, ...values))
    const waits = pending ? [`${count(pending)}, oldest `, time(oldest)] : ['0']
    this.facts.replaceChildren(
      fact('Backlog', ...waits),
      fact('Dead letters', count(dead)),
      fact('Product', product),
      fact('Types', types.length ? types.join(', ') : 'all'),
      fact('Receiver', el('span', { className: 'url' }, url)),
    )
    this.problem.replaceChildren(problem ?? '', ...(problem && until ? ['; tried again ', time(until)] : []))
    show(this.problem, Boolean(problem))
    show(this.enable, state === 'open' || state === 'disabled')
    show(this.look, dead > 0 || !this.deadLetters.hidden)
    show(this.again, dead > 0)
    this.dead = dead
  }

  async sendTest() {
    const { outcome, status, duration_ms: took, error } = await post(`${this.path}/test`)
    const answer = status ? `status ${status}` : (error ?? 'no answer')
    return `Test ${outcome}: ${answer} after ${took} ms.`
  }

  async sendEnable() {
    await post(`${this.path}/enable`)
    return 'Enabled: the backlog is being sent.'
  }

  async redeliverAll() {
    await this.refresh() // the operator agrees to this number
    const what = plural(this.dead, 'dead letter')
    const text = `The receiver of “${this.id}” gets ${what} again. It may have received some of them before, and newer events since.`
    if (!(await confirmed('Redeliver all?', text, `Redeliver ${what}`))) return ''
    return this.redeliver({ state: 'dead' })
  }

  async redeliver(which) {
    const { requeued } = await post(`${this.path}/redeliver`, which)
    if (!this.deadLetters.hidden) await this.readDeadLetters()
    return `${plural(requeued, 'delivery', 'deliveries')} back in the queue.`
  }

  async toggleDeadLetters() {
    const isOpening = this.deadLetters.hidden
    if (isOpening) await this.readDeadLetters()
    show(this.deadLetters, isOpening)
    say(this.look, isOpening ? 'Hide dead letters' : 'Show dead letters')
    this.look.setAttribute('aria-label', `${this.look.textContent}: ${this.id}`)
    this.look.setAttribute('aria-expanded', String(isOpening))
    if (!isOpening) this.deadLetters.replaceChildren()
  }

  async readDeadLetters() {
    const { deliveries, next } = await get(`${this.path}/deliveries?state=dead&limit=${MAX_DEAD_LETTERS}`)
    if (!deliveries.length) return this.deadLetters.replaceChildren(el('p', {}, 'No dead letters are left.'))
    const heads = ['Event', 'Type', 'Given up', 'Why', 'Payload', 'Do']
    const caption = `The newest dead letters of ${this.id}${next ? `, ${MAX_DEAD_LETTERS} at most` : ''}`
    this.deadLetters.replaceChildren(table(caption, heads, deliveries.map((deadLetter) => this.deadLetterRow(deadLetter))))
  }

  deadLetterRow({ id, event_id: event, type, died_at: died, reason, attempts, payload }) {
    const last = attempts.at(-1)
    const why = [reason, plural(attempts.length, 'attempt'), last && `last ${last.outcome}${last.status ? ` ${last.status}` : ''}`]
    const text = el('pre', { tabIndex: 0, role: 'region', 'aria-label': `Payload of ${event}` })
    const open = el('details', {}, el('summary', {}, 'Show'), text)
    open.addEventListener('toggle', () => (text.textContent = open.open ? pretty(JSON.stringify(payload)) : ''))
    const again = el('button', { type: 'button', 'aria-label': `Redeliver ${event}` }, 'Redeliver')
    again.addEventListener('click', () => this.during(again, () => this.redeliver({ delivery_ids: [id] })))
    const given = cell('Given up', time(died))
    const words = why.filter(Boolean).join(', ')
    return row(event, cell('Type', type), given, cell('Why', words), cell('Payload', open), cell('Do', again))
  }
}
