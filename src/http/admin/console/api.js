// Requests to the relay. The admin key is in this module's memory and in no storage: a reload forgets it.

import { byId, announce, learnTime, say, show } from './page.js'

let key = ''
let isAsking = null

// Reason for which a request has no usable answer. The status is 0 if there was no answer at all.
export class Refusal extends Error {
  constructor(status, text) {
    super(text)
    this.status = status
  }
}

const headers = () => (key ? { 'X-Admin-Key': key } : {})

// Returns the text of a problem (RFC 9457), with its errors by field.
const problem = async (answer) => {
  try {
    const { title, detail, errors } = await answer.json()
    const fields = (errors ?? []).map(({ field, message }) => `${field} ${message}`.trim())
    return [detail ?? title, ...fields].join('; ')
  } catch {
    return `the relay answered ${answer.status}`
  }
}

const send = async (path, { timeout, signal, ...init }) => {
  const limits = [signal, timeout && AbortSignal.timeout(timeout)].filter(Boolean)
  try {
    const more = { cache: 'no-store', headers: { ...init.headers, ...headers() }, signal: AbortSignal.any(limits) }
    return await fetch(path, { ...init, ...more })
  } catch (error) {
    throw new Refusal(0, error.name === 'TimeoutError' ? `no answer within ${timeout / 1000} s` : 'it cannot be reached')
  }
}

// Returns the answer to a request, once the relay accepts the key. On a 401 the operator is asked for another key.
export const ask = async (path, init = {}) => {
  for (;;) {
    const offered = key
    const answer = await send(path, init)
    if (answer.ok) {
      learnTime(answer.headers.get('date'))
      return answer
    }
    if (answer.status !== 401) throw new Refusal(answer.status, await problem(answer))
    // A key that has changed meanwhile is tried first: another request has asked for it.
    if (offered === key) await askForKey(offered)
  }
}

// Time-outs in milliseconds. A POST may wait for a webhook's receiver.
const READING = { timeout: 10000 }
const SENDING = { method: 'POST', timeout: 60000 }
export const get = async (path) => (await ask(path, READING)).json()
export const text = async (path) => (await ask(path, READING)).text()
export const post = async (path, body) => {
  const json = { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }
  const answer = await ask(path, { ...SENDING, ...(body ? json : {}) })
  return answer.json()
}

// Asks the operator for the key. Requests that need it meanwhile wait for the same promise.
const askForKey = (offered) => {
  const dialog = byId('key-dialog')
  const wrong = byId('key-wrong')
  if (offered) {
    say(wrong, 'The relay does not accept this key. It is the value of auth.admin_key in its configuration.')
    announce(wrong.textContent)
  }
  show(wrong, Boolean(offered))
  byId('key').setAttribute('aria-invalid', String(Boolean(offered)))
  if (isAsking) return isAsking
  if (!dialog.open) dialog.showModal()
  isAsking = new Promise((resolve) => {
    byId('key-form').onsubmit = (submission) => {
      submission.preventDefault()
      const field = byId('key')
      // A header field can carry no other characters.
      if (!/^[\x21-\x7e]+$/.test(field.value)) {
        say(wrong, 'A key consists of visible ASCII characters, without white space.')
        return show(wrong, true)
      }
      key = field.value
      field.value = ''
      isAsking = null
      dialog.close()
      show(byId('forget'), true)
      resolve()
    }
  })
  return isAsking
}

export const prepare = () => {
  // Escape must not close the dialog: without a key the page has nothing to show.
  byId('key-dialog').addEventListener('cancel', (event) => event.preventDefault())
  // A reload forgets the key, and all data that was read with it.
  byId('forget').addEventListener('click', () => location.reload())
}
