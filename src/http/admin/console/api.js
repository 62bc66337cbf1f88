// Asking the relay. The admin key lives in this module's memory and nowhere else: a reload forgets it.

import { byId, announce, learnTime, say, show } from './page.js'

let key = ''
let isAsking = null

// Why a request has no answer that could be used; the status is 0 where there was no answer at all.
export class Refusal extends Error {
  constructor(status, text) {
    super(text)
    this.status = status
  }
}

const headers = () => (key ? { 'X-Admin-Key': key } : {})

// What the problem of an answer says, fields included.
const problem = async (answer) => {
  try {
    const { title, detail, errors } = await answer.json()
    const fields = (errors ?? []).map(({ field, message }) => `${field} ${message}`.trim())
    return [detail ?? title, ...fields].join('; ')
  } catch {
    return `the relay answered ${answer.status}`
  }
}

const reach = async (path, { patience, signal, ...init }) => {
  const limits = [signal, patience && AbortSignal.timeout(patience)].filter(Boolean)
  try {
    const more = { cache: 'no-store', headers: { ...init.headers, ...headers() }, signal: AbortSignal.any(limits) }
    return await fetch(path, { ...init, ...more })
  } catch (error) {
    throw new Refusal(0, error.name === 'TimeoutError' ? `no answer within ${patience / 1000} s` : 'it cannot be reached')
  }
}

// The answer to a request, once the relay takes the key: if it does not, the operator is asked for another.
export const ask = async (path, init = {}) => {
  for (;;) {
    const offered = key
    const answer = await reach(path, init)
    if (answer.ok) {
      learnTime(answer.headers.get('date'))
      return answer
    }
    if (answer.status !== 401) throw new Refusal(answer.status, await problem(answer))
    if (offered === key) await askForKey(offered)
  }
}

// In milliseconds. What is sent may wait for a receiver of webhooks.
const READING = { patience: 10000 }
const SENDING = { method: 'POST', patience: 60000 }
export const get = async (path) => (await ask(path, READING)).json()
export const text = async (path) => (await ask(path, READING)).text()
export const post = async (path, body) => {
  const json = { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }
  const answer = await ask(path, { ...SENDING, ...(body ? json : {}) })
  return answer.json()
}

// Whoever asks meanwhile waits for the same key.
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
      // What no header can carry is not a key.
      if (!/^[\x21-\x7e]+$/.test(field.value)) {
        say(wrong, 'A key has no white space, and no letters beyond ASCII.')
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
  // Without a key there is nothing behind the dialog.
  byId('key-dialog').addEventListener('cancel', (event) => event.preventDefault())
  // The key, and all that was read with it.
  byId('forget').addEventListener('click', () => location.reload())
}
