// One EventSource, told as lines of JSON on stdout: open, message, heartbeat, gap, error. What they mean is judged
// in test_eventsource.py. run.py copies this file beside its node_modules.
import { EventSource } from 'eventsource'

const [url, token] = process.argv.slice(2)
const tell = (happening) => process.stdout.write(JSON.stringify(happening) + '\n')

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

// The end of stdin is the request to leave. It also comes when the test that started this dies.
process.stdin.resume().on('end', () => source.close())
