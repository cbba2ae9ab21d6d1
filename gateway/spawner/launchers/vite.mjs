// Starts the project's own Vite (5 or later) behind the gateway, without touching its config file.
//
//   node vite.mjs <host> <port> <base> [<public host>]        (working directory: the project)
//   node vite.mjs --wait [<package> ...]
//
// With `--wait` there are dependencies, but no project yet: all that a start needs is loaded, also
// those packages that are plugins of Vite. Then it prints `preview: loaded`, and one line of stdin
// says the rest: {"host", "port", "base", "publicHost", "env"}.
//
// What the gateway must decide (address, base, how the HMR client finds its socket) is put over
// the user's config; everything else in it stays. The public host, if the dev server is asked under
// one, joins those that the config allows. A line that begins with `preview: ` is the reason of a
// failure, in words for the user. Ends when stdin ends: then the gateway is gone.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const OLDEST_MAJOR = 5
const CLOSE_MILLISECONDS = 500
// Where the user's HMR client would look for its socket; behind the gateway that is always the
// page's own address. `ws` holds these options from Vite 8.1 on, `hmr` before.
const SOCKET_OPTIONS = ['host', 'port', 'clientPort', 'protocol', 'path', 'server']

const root = process.cwd()
let host, port, base, publicHost
let server

function fail(reason, error) {
  if (error) console.error(error)
  console.error(`preview: ${reason}`)
  process.exit(1)
}

async function end() {
  // A browser may hold connections open: what does not close in time is cut off.
  setTimeout(() => process.exit(0), CLOSE_MILLISECONDS)
  await server?.close().catch(() => {})
  process.exit(0)
}

function installed() {
  const folder = path.join(root, 'node_modules', 'vite')
  let version
  try {
    version = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8')).version
  } catch {
    fail("Vite is not installed: add it to the devDependencies in package.json")
  }
  if (Number.parseInt(version, 10) < OLDEST_MAJOR) {
    fail(`Vite ${version} is too old: this preview needs Vite ${OLDEST_MAJOR} or later`)
  }
  return { entry: path.join(folder, 'dist', 'node', 'index.js'), version }
}

function withoutSocketOptions(options) {
  if (typeof options !== 'object' || options === null) return options // `hmr: false` is kept
  return Object.fromEntries(
    Object.entries(options).filter(([name]) => !SOCKET_OPTIONS.includes(name)),
  )
}

// The last word on the user's config and on what the user's plugins made of it.
const gateway = {
  name: 'preview-gateway',
  enforce: 'post',
  config: {
    order: 'post',
    handler(config) {
      const { https, origin, ...kept } = config.server ?? {}
      if ('hmr' in kept) kept.hmr = withoutSocketOptions(kept.hmr)
      if ('ws' in kept) kept.ws = withoutSocketOptions(kept.ws)
      if (publicHost && kept.allowedHosts !== true) {
        kept.allowedHosts = [...(kept.allowedHosts ?? []), publicHost]
      }
      config.base = base
      config.server = { ...kept, host, port: Number(port), strictPort: true, open: false }
    },
  },
  configResolved(config) {
    // Certificate plugins set `https` in their own configResolved, some after an await: the
    // gateway speaks plain HTTP to dev servers, so nothing may set it.
    Object.defineProperty(config.server, 'https', {
      configurable: true,
      enumerable: true,
      get: () => undefined,
      set: () => {},
    })
  },
}

async function serve() {
  const { entry, version } = installed()
  const started = performance.now()
  try {
    const { createServer } = await import(pathToFileURL(entry))
    server = await createServer({
      root,
      base,
      clearScreen: false,
      plugins: [gateway],
      server: { host, port: Number(port), strictPort: true, open: false, middlewareMode: false },
    })
    await server.listen()
    console.log(`Vite ${version} ready in ${Math.round(performance.now() - started)} ms`)
  } catch (error) {
    fail(`Vite ${version} did not start: ${String(error?.message ?? error).split('\n')[0]}`, error)
  }
}

process.on('SIGTERM', end)
process.stdin.on('end', end).on('error', end).resume()

const given = process.argv.slice(2)
if (given[0] === '--wait') {
  const { firstLineOfInput, loadAhead } = await import('./ahead.mjs')
  const line = firstLineOfInput()
  await loadAhead(root, installed().entry, given.slice(1))
  console.log('preview: loaded')
  const order = JSON.parse(await line)
  ;({ host, port, base, publicHost } = order)
  Object.assign(process.env, order.env)
} else {
  ;[host, port, base, publicHost] = given
}
await serve()
