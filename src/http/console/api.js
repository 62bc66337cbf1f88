// Asking the relay. The admin key lives in this module's memory and nowhere else: a reload forgets it.

import { byId, announce, learnTime, say, show } from './page.js'

let key = ''
let isAsking = null

// Why a request has no answer that could be used.
export class Refusal extends Error {
  constructor(status, text) {
    super(text)
    this.status = status
  }
}

export const headers = () => (key ? { 'X-Admin-Key': key } : {})

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

// The answer to a request, once the relay takes the key: if it does not, the operator is asked for another.
export const ask = async (path, init = {}) => {
  for (;;) {
    const offered = key
    const answer = await fetch(path, { cache: 'no-store', ...init, headers: { ...init.headers, ...headers() } })
    if (answer.ok) {
      learnTime(answer.headers.get('date'))
      return answer
    }
    if (answer.status !== 401) throw new Refusal(answer.status, await problem(answer))
    if (offered === key) await askForKey(offered)
  }
}

const PATIENCE = 10000
export const get = async (path) => (await ask(path, { signal: AbortSignal.timeout(PATIENCE) })).json()
export const text = async (path) => (await ask(path, { signal: AbortSignal.timeout(PATIENCE) })).text()
export const post = async (path, body) => {
  const json = { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }
  const answer = await ask(path, { method: 'POST', ...(body ? json : {}) })
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
