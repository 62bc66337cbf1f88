// One headless Chromium for many tests. A line on stdin is a command, answered by a line with its number; lines
// without a number report events of the pages. test_browser.py checks them. run.py copies this file
// beside its node_modules.
import { createInterface } from 'node:readline'
import { chromium } from 'playwright-core'

const tell = (report) => process.stdout.write(JSON.stringify(report) + '\n')

// Functions for pages: each runs in the page, where `tell` is defined.
const forPages = () => {
  window.follow = (name, url, init) => {
    const source = new EventSource(url, init)
    for (const kind of ['message', 'heartbeat', 'gap']) {
      source.addEventListener(kind, ({ data, lastEventId }) => tell({ name, kind, data, id: lastEventId }))
    }
    source.addEventListener('open', () => tell({ name, kind: 'open' }))
    source.addEventListener('error', () => tell({ name, kind: 'error', closed: source.readyState === EventSource.CLOSED }))
  }
  window.talk = (name, url) => {
    const socket = new WebSocket(url)
    socket.addEventListener('open', () => tell({ name, kind: 'open' }))
    socket.addEventListener('message', ({ data }) => tell({ name, kind: 'text', data }))
    socket.addEventListener('error', () => tell({ name, kind: 'error' }))
    socket.addEventListener('close', ({ code }) => tell({ name, kind: 'close', code }))
    window.sockets = { ...window.sockets, [name]: socket }
  }
  window.ask = async (url, init) => {
    try {
      const answer = await fetch(url, init)
      return { status: answer.status, body: await answer.text() }
    } catch (error) {
      return { refused: error.name }
    }
  }
}

// The tests have no network: without these options, Chromium keeps trying to reach its vendor.
const args = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
args.push('--disable-component-update', '--disable-sync')
const [executablePath, profile, ...more] = process.argv.slice(2)
args.push(...more)
const context = await chromium.launchPersistentContext(profile, { executablePath, chromiumSandbox: false, args })
await context.exposeFunction('tell', tell)
await context.addInitScript(forPages)
const pages = {}

const execute = async ({ reset, page, go, run, cookie }) => {
  if (reset) {
    await Promise.all(Object.values(pages).map((page) => page.close()))
    Object.keys(pages).forEach((name) => delete pages[name])
    return context.clearCookies()
  }
  if (cookie) return context.addCookies([cookie])
  if (run) return pages[page].evaluate(run)
  pages[page] = await context.newPage()
  await pages[page].goto(go)
  return pages[page].evaluate('location.origin')
}

const lines = createInterface({ input: process.stdin })
lines.on('line', async (line) => {
  const { number, ...command } = JSON.parse(line)
  try {
    tell({ number, value: (await execute(command)) ?? null })
  } catch (error) {
    tell({ number, failure: String(error) })
  }
})
// The end of stdin requests the exit. It also comes when the test that started this process dies.
lines.on('close', () => context.close())
