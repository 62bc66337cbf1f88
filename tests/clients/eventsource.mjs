// One EventSource, reported as lines of JSON on stdout: open, message, heartbeat, gap, error.
// test_eventsource.py checks them. run.py copies this file beside its node_modules.
import { EventSource } from 'eventsource'

const [url, token] = process.argv.slice(2)
const tell = (report) => process.stdout.write(JSON.stringify(report) + '\n')

const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }),
})
for (const kind of ['message', 'heartbeat', 'gap']) {
  source.addEventListener(kind, ({ data, lastEventId }) => tell({ kind, data, id: lastEventId }))
}
source.addEventListener('open', () => tell({ kind: 'open' }))
source.addEventListener('error', ({ code }) => {
  tell({ kind: 'error', code: code ?? null, closed: source.readyState === EventSource.CLOSED })
})

// The end of stdin requests the exit. It also comes when the test that started this process dies.
process.stdin.resume().on('end', () => source.close())
