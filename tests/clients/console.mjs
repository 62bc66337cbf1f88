// The console in one headless Chromium, with its own context for each page. The lines are those of
// browser.mjs; errors and policy violations of the pages are reported without a command.
// test_console*.py check them.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { chromium } from 'playwright-core'

const tell = (report) => process.stdout.write(JSON.stringify(report) + '\n')
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']

// The tests have no network: without these options, Chromium keeps trying to reach its vendor.
const args = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
args.push('--disable-component-update', '--disable-sync')
const [executablePath, , ...more] = process.argv.slice(2)
const browser = await chromium.launch({ executablePath, chromiumSandbox: false, args: [...args, ...more] })
const pages = {}

const open = async (name, url, options) => {
  const context = await browser.newContext(options)
  const page = await context.newPage()
  pages[name] = page
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) tell({ name, kind: 'console', text: message.text() })
  })
  page.on('pageerror', (error) => tell({ name, kind: 'error', text: String(error.stack) }))
  page.on('request', (request) => tell({ name, kind: 'request', url: request.url(), headers: request.headers() }))
  await page.exposeFunction('violated', (text) => tell({ name, kind: 'violation', text }))
  await page.addInitScript(() => {
    const say = ({ effectiveDirective, blockedURI }) => window.violated(`${effectiveDirective} ${blockedURI}`)
    addEventListener('securitypolicyviolation', say)
  })
  await page.goto(url)
}

// Returns the accessibility rules that the page violates, and where.
const check = async (page) => {
  await page.evaluate(axe)
  const { violations } = await page.evaluate((values) => window.axe.run({ runOnly: { type: 'tag', values } }), RULES)
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 200)).join(' | ')}`)
}

// Returns roles and names as Chromium reports them to a screen reader.
const tree = async (page) => {
  const session = await page.context().newCDPSession(page)
  const { nodes } = await session.send('Accessibility.getFullAXTree')
  await session.detach()
  return nodes.filter(({ ignored }) => !ignored).map(({ role, name }) => [role?.value ?? '', name?.value ?? ''])
}

// Requests for these paths wait, or fail with a status, until they are released.
const held = {}
const hold = async (page, path, status) => {
  let release
  const released = new Promise((resolve) => (release = resolve))
  const handler = async (route) => {
    if (status) return route.fulfill({ status, contentType: 'application/problem+json', body: '{"title":"made to fail"}' })
    await released
    return route.continue().catch(() => {}) // the page may have cancelled the request meanwhile
  }
  await page.route(path, handler)
  held[path] = async () => {
    release()
    await page.unroute(path, handler)
  }
}

const execute = async ({ page: name, ...wanted }) => {
  if (wanted.reset) return Promise.all(browser.contexts().map((context) => context.close())).then(() => null)
  if (wanted.open) return open(name, wanted.open, wanted.options)
  const page = pages[name]
  if (wanted.run) return page.evaluate(wanted.run)
  if (wanted.press) return page.keyboard.press(wanted.press)
  if (wanted.write) return page.keyboard.insertText(wanted.write)
  if (wanted.click) return page.getByRole(wanted.role, { name: wanted.click, exact: true }).click()
  if (wanted.hold) return hold(page, wanted.hold, wanted.status)
  if (wanted.release) return held[wanted.release]()
  if (wanted.reload) return page.reload().then(() => null)
  return wanted.check ? check(page) : tree(page)
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
lines.on('close', () => browser.close())
