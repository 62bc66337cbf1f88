// The console: reads the relay's state every two seconds and shows it. Each part of the page has a file of its own.

import * as api from './api.js'
import { announce, byId, chip, say, show } from './page.js'
import * as rates from './rates.js'
import * as rejected from './rejected.js'
import * as status from './status.js'
import * as tail from './tail.js'
import * as webhooks from './webhooks.js'

const PACE = 2000 // milliseconds between two readings

// Each part is read and drawn separately, so a part that fails does not affect the others.
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
    parts.forEach((part, index) => showFailure(part, isLost ? null : failures[index]))
    await new Promise((resolve) => setTimeout(resolve, isLost ? PACE / 2 : PACE))
  }
}

// Returns the reason for which this part could not be updated, or null.
const refresh = async ({ read, draw }) => {
  try {
    draw(await read())
    return null
  } catch (error) {
    return error
  }
}

const clock = () => new Date().toLocaleTimeString('en-GB')

// Shows in the part itself that its data is old, and why.
const showFailure = (part, failure) => {
  part.since = failure ? (part.since ?? clock()) : null
  const line = byId(`${part.id}-problem`)
  if (failure) say(line, `Not updated since ${part.since}: ${failure.message}.`)
  if (failure && line.hidden) announce(line.textContent)
  show(line, Boolean(failure))
}

// Shows whether the relay answers. The text stays the same from attempt to attempt, so that a screen reader does not repeat it.
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
