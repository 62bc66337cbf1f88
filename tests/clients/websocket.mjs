// One WebSocket, reported as lines of JSON on stdout: open, message, close, error. A line on stdin
// is sent unchanged. test_websocket.py checks the lines. run.py copies this file beside its
// node_modules.
import { createInterface } from 'node:readline'
import WebSocket from 'ws'

const [url, token] = process.argv.slice(2)
const tell = (report) => process.stdout.write(JSON.stringify(report) + '\n')

const socket = new WebSocket(url, { headers: { Authorization: `Bearer ${token}` } })
socket.on('open', () => tell({ kind: 'open' }))
socket.on('message', (data, isBinary) => tell({ kind: 'message', text: isBinary ? null : data.toString() }))
socket.on('pong', () => tell({ kind: 'pong' }))
socket.on('close', (code) => {
  tell({ kind: 'close', code })
  process.stdin.destroy()
})
socket.on('error', ({ message }) => tell({ kind: 'error', message }))

const lines = createInterface({ input: process.stdin })
lines.on('line', (line) => (line === 'ping' ? socket.ping() : socket.send(line)))
// The end of stdin requests the exit. It also comes when the test that started this process dies.
lines.on('close', () => socket.close(1000))
