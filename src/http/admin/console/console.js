// The console: reads the relay every other second and shows what it says. The parts are in files of their own.

import * as api from './api.js'
import { announce, byId, chip, say, show } from './page.js'
import * as rates from './rates.js'
import * as rejected from './rejected.js'
import * as status from './status.js'
import * as tail from './tail.js'
import * as webhooks from './webhooks.js'

const PACE = 2000 // milliseconds between two readings

// Each is read and drawn on its own: one that fails takes none of the others with it.
const parts = [
  { id: 'status', read: () => api.get('/api/v1/status'), draw: (answer) => tail.offer(status.draw(answer)) },
  { id: 'rates', read: () => api.text('/metrics'), draw: rates.draw },
  { id: 'webhooks', read: () => api.get('/api/v1/webhooks'), draw: webhooks.draw },
  { id: 'rejected', read: () => api.get('/api/v1/rejected'), draw: rejected.draw },
]

const run = async () => {
  for (;;) {
    const failures = await Promise.all(parts.map(refresh))
    const isLost = failures.every((failure) => failure !== null)
    if (isLost) lost(failures[0])
    else reached()
    parts.forEach((part, index) => tell(part, isLost ? null : failures[index]))
    await new Promise((resolve) => setTimeout(resolve, isLost ? PACE / 2 : PACE))
  }
}

// Why this part could not be brought up to date; null if it could.
const refresh = async ({ read, draw }) => {
  try {
    draw(await read())
    return null
  } catch (error) {
    return error
  }
}

const clock = () => new Date().toLocaleTimeString('en-GB')

// What a part shows is old, and why: in the part itself.
const tell = (part, failure) => {
  part.since = failure ? (part.since ?? clock()) : null
  const line = byId(`${part.id}-problem`)
  if (failure) say(line, `Not brought up to date since ${part.since}: ${failure.message}.`)
  if (failure && line.hidden) announce(line.textContent)
  show(line, Boolean(failure))
}

// Whether the relay answers, in words that do not change with every attempt.
let lostAt = null
const reached = () => {
  if (lostAt) announce('The relay answers again.')
  lostAt = null
  show(byId('lost'), false)
  byId('link').replaceChildren(chip('good', 'Live'))
}
const lost = ({ message }) => {
  lostAt ??= clock()
  const text = `The relay has not answered since ${lostAt} (${message}). What you see is from before; the page goes on by itself.`
  if (byId('lost').hidden) announce(text)
  say(byId('lost-text'), text)
  show(byId('lost'), true)
  byId('link').replaceChildren(chip('warn', 'Not reached'))
}

api.prepare()
tail.prepare()
say(byId('webhooks-how'), `curl -X POST ${location.origin}/api/v1/webhooks -d @webhook.json`)
run()
