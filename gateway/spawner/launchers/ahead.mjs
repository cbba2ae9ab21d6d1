// What vite.mjs does while it waits for a project: it loads all that a start needs.
//
// No code of a project runs here, only that of installed packages: whoever gets this process has
// the same dependencies, but may be somebody else than the one before.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const SAMPLE = {
  'index.html': '<head></head><script type="module" src="/main.js"></script>',
  'main.js': 'import "./style.css"\nimport.meta.hot?.accept()\n',
  'style.css': 'a { color: red }',
  'vite.config.mjs': 'import { defineConfig } from "vite"\nexport default defineConfig({})\n',
}

/** Load Vite from `entry`, and of `packages` those that are plugins of it. */
export async function loadAhead(root, entry, packages) {
  const { createServer } = await import(pathToFileURL(entry))
  // What fails here is no plugin of every project. Where it is one, it is asked for again.
  const load = await loader(root)
  for (const name of packages.filter((name) => isPlugin(root, name))) {
    await load(name).catch(() => {})
  }
  const before = { ...process.env }
  await rehearse(root, createServer).catch(() => {})
  for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name]
}

/** The first line of stdin, without its end. */
export function firstLineOfInput() {
  return new Promise((resolve) => {
    let text = ''
    process.stdin.setEncoding('utf8').on('data', (part) => {
      text += part
      if (text.includes('\n')) resolve(text.slice(0, text.indexOf('\n')))
    })
  })
}

// Imports from `node_modules/.vite-temp`, where Vite puts the compiled config: so that a package is
// the very module that the config will ask for.
async function loader(root) {
  const folder = path.join(root, 'node_modules', '.vite-temp')
  const file = path.join(folder, 'preview-gateway.mjs')
  mkdirSync(folder, { recursive: true })
  writeFileSync(file, 'export const load = (name) => import(name)\n')
  try {
    return (await import(pathToFileURL(file))).load
  } finally {
    rmSync(file)
  }
}

function isPlugin(root, name) {
  try {
    const file = path.join(root, 'node_modules', name, 'package.json')
    return 'vite' in (JSON.parse(readFileSync(file, 'utf8')).peerDependencies ?? {})
  } catch {
    return false
  }
}

// Serves a page of a project of ours, on a port of this machine for that moment: much is loaded,
// compiled and started (the bundler) on first use only. Figures are in warm_process.py.
async function rehearse(root, createServer) {
  const folder = mkdtempSync(path.join(tmpdir(), 'rehearsal-'))
  for (const [name, text] of Object.entries(SAMPLE)) writeFileSync(path.join(folder, name), text)
  symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'))
  const sample = await createServer({
    root: folder,
    base: '/sample/',
    cacheDir: path.join(folder, 'cache'),
    logLevel: 'silent',
    server: { host: '127.0.0.1', port: 0, open: false },
  })
  try {
    await sample.listen()
    const { port } = sample.httpServer.address()
    for (const name of ['', 'main.js', 'style.css', '@vite/client']) await fetchLocally(port, name)
  } finally {
    await sample.close()
    rmSync(folder, { recursive: true })
  }
}

function fetchLocally(port, name) {
  const headers = { host: `localhost:${port}`, accept: name ? '*/*' : 'text/html' }
  const options = { host: '127.0.0.1', port, path: `/sample/${name}`, headers, agent: false }
  return new Promise((resolve, reject) => {
    get(options, (response) => response.on('end', resolve).resume()).on('error', reject)
  })
}
