// The launcher inside a preview's pod: takes files and orders from the gateway, runs dev servers.
//
//   node agent.mjs        settings: PREVIEW_* in the environment; protocol: docs/agent.md
//
// One file without dependencies, Node 20 or later, Linux. It is the main process of the container
// in which the dev server runs, because file watchers see only what is renamed into a folder of
// their own container (gVisor). Its port asks for a token. Code of the preview runs under the same
// user: the token keeps others out, not the preview itself, which could only harm itself here.

import { spawn } from 'node:child_process'
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import fs from 'node:fs'
import { createServer } from 'node:http'
import path from 'node:path'
import { StringDecoder } from 'node:string_decoder'
import { fileURLToPath } from 'node:url'
import { gunzip } from 'node:zlib'

const MAX_PATH_BYTES = 1024
const MAX_SEGMENT_BYTES = 255
const MAX_LINE_CHARACTERS = 4000
const RING_ENTRIES = 4096
const RING_BYTES = 2 ** 20
const MAX_READERS = 16
const HEARTBEAT_MS = 10_000
const READER_STALL_MS = 30_000
const MAX_HEAD_BYTES = 16 * 2 ** 10
const LINGER_MS = 1000
const DRAIN_MS = 1000
const KILL_MS = 5000
const POLL_MS = 25
// A process that had waited and ends so soon after its order is replaced by one that had not.
const WARM_MS = 10_000
const LOADED = 'preview: loaded'
const MARK = 'PREVIEW_RUN'

const noop = () => {}
const sha256 = (data) => createHash('sha256').update(data).digest('hex')
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
/** Let others have their turn, between two pieces of work that block. */
const breathe = () => new Promise((resolve) => setImmediate(resolve))
const note = (text) => process.stderr.write(`agent: ${text}\n`)

// -- refusals ------------------------------------------------------------------------------------

/** What a call is answered if it is not done: a status, a stable code and a sentence. */
class Refusal extends Error {
  constructor(status, code, sentence, more = {}) {
    super(sentence)
    Object.assign(this, { status, code, more })
  }
}

const badRequest = (sentence) => new Refusal(400, 'bad_request', sentence)
const badFiles = (sentence) => new Refusal(400, 'bad_files', sentence)

// -- paths (pure; the rules and sentences of gateway/spawner/workspace.py) -------------------------

/** Why a path may not be written; empty if it may. */
export function pathProblem(given) {
  if (!given) return 'it is empty'
  if (given.startsWith('/') || /^[A-Za-z]:/.test(given)) {
    return 'it is absolute; give it relative to the project'
  }
  if (given.includes('\\')) return "it contains a backslash; separate folders with '/'"
  if (/[\p{Cc}\p{Cs}]/u.test(given)) {
    return 'it contains a control character or half a surrogate pair'
  }
  if (Buffer.byteLength(given) > MAX_PATH_BYTES) return `it is longer than ${MAX_PATH_BYTES} bytes`
  const segments = given.split('/')
  if (segments.some((segment) => ['', '.', '..'].includes(segment))) {
    return "it has an empty, '.' or '..' segment"
  }
  if (segments.some((segment) => Buffer.byteLength(segment) > MAX_SEGMENT_BYTES)) {
    return `a segment is longer than ${MAX_SEGMENT_BYTES} bytes`
  }
  if (segments[0] === 'node_modules') {
    return 'node_modules is installed by the gateway; leave it out'
  }
  if (segments.some((segment) => segment.toLowerCase() === '.git')) {
    return 'a .git folder is not part of a preview; leave it out'
  }
  return ''
}

function checkPath(given) {
  if (typeof given !== 'string') throw badFiles('a path must be a string')
  const problem = pathProblem(given)
  if (problem) throw badFiles(`the path '${given.slice(0, 120)}' is refused: ${problem}`)
  return given
}

function foldersAbove(given) {
  const found = []
  for (let end = given.indexOf('/'); end !== -1; end = given.indexOf('/', end + 1)) {
    found.push(given.slice(0, end))
  }
  return found
}

// -- output (pure; as gateway/spawner/output.py) ---------------------------------------------------

// ECMA-48: CSI and OSC sequences, other two-character escapes, then control characters but tab.
const ESCAPES =
  /\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]/g

/** A program's bytes, as they come, to lines fit for a log: without escapes, of limited length. */
export class Output {
  #decoder = new StringDecoder('utf8')
  #open = ''

  feed(data) {
    const lines = (this.#open + this.#decoder.write(data)).split('\n')
    // Escapes may still be cut off in the middle, so an open line may be a little longer.
    this.#open = lines.pop().slice(0, 2 * MAX_LINE_CHARACTERS)
    return lines.map(cleanLine)
  }

  end() {
    const last = this.#open + this.#decoder.end()
    this.#open = ''
    return last ? [cleanLine(last)] : []
  }
}

function cleanLine(line) {
  // A carriage return inside a line is a progress bar drawing over itself: the last state counts.
  const shown = line.replace(/\r+$/, '')
  const last = shown.slice(shown.lastIndexOf('\r') + 1).replace(ESCAPES, '')
  return last.slice(0, MAX_LINE_CHARACTERS).toWellFormed()
}

// -- events ----------------------------------------------------------------------------------------

/** What happens, numbered from 1, as lines of JSON; the oldest go when there are too many. */
export class Events {
  last = 0
  #lines = []
  #bytes = 0
  #readers = new Set()
  #heartbeat

  add(event) {
    const text = `${JSON.stringify({ n: ++this.last, ...event })}\n`
    this.#lines.push(text)
    this.#bytes += text.length
    while (this.#lines.length > RING_ENTRIES || this.#bytes > RING_BYTES) {
      this.#bytes -= this.#lines.shift().length
    }
    for (const reader of this.#readers) this.#pump(reader)
  }

  /** Write everything behind `after` to `out`, and go on until that closes. */
  follow(out, after) {
    if (this.#readers.size >= MAX_READERS) {
      throw new Refusal(503, 'busy', `${MAX_READERS} readers are served already`)
    }
    if (after > this.last) throw badRequest(`the last event is ${this.last}, before ${after}`)
    const reader = { out, next: after + 1, stalled: 0 }
    this.#readers.add(reader)
    this.#heartbeat ??= setInterval(() => this.#beat(), HEARTBEAT_MS).unref()
    out.on('close', () => this.#readers.delete(reader))
    out.on('drain', () => {
      reader.stalled = 0
      this.#pump(reader)
    })
    out.flushHeaders()
    this.#pump(reader)
  }

  /** End every reader. */
  close() {
    clearInterval(this.#heartbeat)
    for (const { out } of this.#readers) out.end()
  }

  // A slow reader costs what its socket holds: it misses what leaves the ring meanwhile.
  #pump(reader) {
    const first = this.last - this.#lines.length + 1
    while (reader.next <= this.last && !reader.out.writableNeedDrain && !reader.out.destroyed) {
      if (reader.next < first) {
        const gap = { type: 'gap', from: reader.next, to: first - 1 }
        reader.out.write(`${JSON.stringify(gap)}\n`)
        reader.next = first
      } else {
        reader.out.write(this.#lines[reader.next++ - first])
      }
    }
    if (reader.out.writableNeedDrain) reader.stalled ||= Date.now()
  }

  #beat() {
    for (const reader of this.#readers) {
      if (!reader.out.writableNeedDrain) reader.out.write('\n')
      if (!reader.out.writableNeedDrain) continue
      reader.stalled ||= Date.now()
      if (Date.now() - reader.stalled >= READER_STALL_MS) reader.out.destroy()
    }
  }
}

// -- files -----------------------------------------------------------------------------------------

const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants
const FOLDER = O_RDONLY | O_DIRECTORY | O_NOFOLLOW
const OLD_FILE = O_RDONLY | O_NOFOLLOW | O_NONBLOCK
const NEW_FILE = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW
/** A name in a folder that is held open: what openat(2) is elsewhere. */
const at = (folder, name) => `/proc/self/fd/${folder}/${name}`

/**
 * The project's files in `app`. Folders are held open and walked one segment at a time without
 * following links, so that a link which the running dev server plants leads no write elsewhere.
 *
 * All of it blocks, a file at a time; calls that change something come one after the other.
 */
class Workspace {
  constructor(root) {
    // What an agent before this one may have left half-written.
    fs.rmSync(path.join(root, 'staging'), { recursive: true, force: true })
    for (const name of ['app', 'home', 'tmp', 'staging', 'launchers']) {
      this[name] = path.join(root, name)
      fs.mkdirSync(this[name], { recursive: true })
    }
    this.appFolder = fs.openSync(this.app, FOLDER)
    this.stagingFolder = fs.openSync(this.staging, FOLDER)
    fs.statSync(at(this.appFolder, '.')) // without /proc nothing here works: say so at once
  }

  /** Put a file in its place at once. An edit is seen by file watchers as one change. */
  put(given, content) {
    const { folders, name } = split(given)
    this.#within(folders, given, true, (folder) => this.#putAt(folder, name, content, given))
  }

  #putAt(folder, name, content, given) {
    const staged = at(this.stagingFolder, randomBytes(8).toString('hex'))
    const mode = content.subarray(0, 2).toString('latin1') === '#!' ? 0o755 : 0o644
    try {
      writeNew(staged, mode, content)
      fs.renameSync(staged, at(folder, name))
    } catch (error) {
      fs.rmSync(staged, { force: true })
      if (error.code === 'EISDIR') throw badFiles(`'${given}' is a folder in the workspace`)
      throw error
    }
  }

  /** Delete a file, and the folders that are empty then. An absent one is no error. */
  delete(given) {
    const { folders, name } = split(given)
    try {
      this.#within(folders, given, false, (folder) => fs.unlinkSync(at(folder, name)))
    } catch (error) {
      if (error.code === 'ENOENT') return
      if (['EISDIR', 'EPERM', 'EACCES'].includes(error.code)) {
        throw badFiles(`'${given}' is no file in the workspace`)
      }
      throw error
    }
    try {
      while (folders.length) {
        const last = folders.pop()
        this.#within(folders, given, false, (folder) => fs.rmdirSync(at(folder, last)))
      }
    } catch {
      // not empty: it stays
    }
  }

  /** What a file holds; null if it is gone, longer, or no plain file any more. */
  read(given, longest = Infinity) {
    const { folders, name } = split(given)
    try {
      return this.#within(folders, given, false, (folder) => readAt(folder, name, longest))
    } catch (error) {
      if (error instanceof Refusal || error.code) return null
      throw error
    }
  }

  /** Refuse what could not be applied, before anything is: folders, files and links in the way. */
  checkPlaces(write, remove) {
    const removed = new Set(remove)
    const emptied = new Set(remove.flatMap(foldersAbove))
    for (const given of write) {
      for (const folder of foldersAbove(given)) {
        const kind = this.#kind(folder)
        if (!kind) break
        if (kind !== 'folder' && !removed.has(folder)) {
          const name = folder.slice(folder.lastIndexOf('/') + 1)
          throw badFiles(`'${name}' in '${given}' is no folder in the workspace`)
        }
      }
      if (this.#kind(given) === 'folder' && !emptied.has(given)) {
        throw badFiles(`'${given}' is a folder in the workspace`)
      }
    }
  }

  #kind(given) {
    const { folders, name } = split(given)
    try {
      const facts = this.#within(folders, given, false, (folder) => fs.lstatSync(at(folder, name)))
      return facts.isDirectory() ? 'folder' : 'other'
    } catch {
      return ''
    }
  }

  /** Remove whatever is not in `wanted`, but for node_modules beside something wanted. */
  sweep(wanted) {
    const folders = new Set([...wanted].flatMap(foldersAbove))
    this.#sweep(this.appFolder, '', wanted, folders)
  }

  #sweep(folder, prefix, wanted, folders) {
    for (const entry of fs.readdirSync(at(folder, '.'), { withFileTypes: true })) {
      const given = prefix + entry.name
      const isFolder = entry.isDirectory()
      if (isFolder && folders.has(given)) {
        const below = fs.openSync(at(folder, entry.name), FOLDER)
        try {
          this.#sweep(below, `${given}/`, wanted, folders)
        } finally {
          fs.closeSync(below)
        }
      } else if (isFolder ? entry.name !== 'node_modules' : !(entry.isFile() && wanted.has(given))) {
        fs.rmSync(at(folder, entry.name), { recursive: true, force: true })
      }
    }
  }

  #within(folders, given, create, use) {
    let current = this.appFolder
    try {
      for (const name of folders) {
        const below = openFolder(current, name, given, create)
        if (current !== this.appFolder) fs.closeSync(current)
        current = below
      }
      return use(current)
    } finally {
      if (current !== this.appFolder) fs.closeSync(current)
    }
  }
}

function split(given) {
  const folders = given.split('/')
  return { name: folders.pop(), folders }
}

function openFolder(parent, name, given, create) {
  if (create) {
    try {
      fs.mkdirSync(at(parent, name), 0o755)
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
    }
  }
  try {
    return fs.openSync(at(parent, name), FOLDER)
  } catch (error) {
    if (error.code === 'ENOTDIR' || error.code === 'ELOOP') {
      throw badFiles(`'${name}' in '${given}' is no folder in the workspace`)
    }
    throw error
  }
}

function writeNew(name, mode, content) {
  const file = fs.openSync(name, NEW_FILE, mode)
  try {
    fs.writeFileSync(file, content)
  } finally {
    fs.closeSync(file)
  }
}

function readAt(folder, name, longest) {
  const file = fs.openSync(at(folder, name), OLD_FILE)
  try {
    const facts = fs.fstatSync(file)
    return facts.isFile() && facts.size <= longest ? fs.readFileSync(file) : null
  } finally {
    fs.closeSync(file)
  }
}

// -- dependencies ----------------------------------------------------------------------------------

// What an install depends on; see gateway/spawner/manifests.py.
const SECTIONS = ['dependencies', 'devDependencies', 'optionalDependencies', 'peerDependencies']
const RELEVANT = [
  ...SECTIONS, 'peerDependenciesMeta', 'bundleDependencies', 'bundledDependencies', 'overrides',
  'workspaces', 'engines', 'os', 'cpu',
]
const BESIDE = ['npm-shrinkwrap.json', 'package-lock.json', 'yarn.lock', 'pnpm-lock.yaml', '.npmrc']
const LOCAL = /^(?:(?:file|link|workspace):|\.{0,2}\/|~\/)/

/** What two projects share if one's node_modules fit the other; null if that cannot be told. */
export function dependencyKey(read) {
  let project
  try {
    project = JSON.parse(read('package.json').toString().replace(/^\ufeff/, ''))
  } catch {
    return null
  }
  if (!isObject(project) || project.workspaces) return null
  const versions = SECTIONS.flatMap((section) => Object.values(project[section] ?? {}))
  if (versions.some((version) => typeof version !== 'string' || LOCAL.test(version))) return null
  const relevant = RELEVANT.map((name) => [name, sorted(project[name] ?? null)])
  const beside = BESIDE.map((name) => [name, read(name)?.toString('base64') ?? ''])
  return sha256(JSON.stringify([relevant, beside]))
}

function sorted(value) {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(sorted)
  return Object.keys(value).sort().map((name) => [name, sorted(value[name])])
}

/** What of the pod's own variables an install sees: settings of npm, proxies, certificates. */
export function installVariables(ours) {
  const passes = /^(?:npm_config_.*|https?_proxy|no_proxy|ssl_cert_(?:file|dir)|node_extra_ca_certs)$/i
  return Object.fromEntries(Object.entries(ours).filter(([name]) => passes.test(name)))
}

function readOrNull(file) {
  try {
    return fs.readFileSync(file)
  } catch {
    return null
  }
}

// -- processes -------------------------------------------------------------------------------------

/** A program in a process group of its own, and all that it starts. */
class Child {
  ended = false

  constructor(command, { cwd, env, lines }) {
    this.mark = randomBytes(16).toString('hex')
    this.lines = lines
    this.process = spawn(command[0], command.slice(1), {
      cwd, env: { ...env, [MARK]: this.mark }, detached: true, stdio: 'pipe',
    })
    this.process.stdin.on('error', noop)
    const drained = Promise.all([this.#hear('stdout'), this.#hear('stderr')])
    this.exited = new Promise((resolve) => {
      this.process.once('error', (error) => resolve({ code: null, signal: null, error }))
      this.process.once('exit', (code, signal) => resolve({ code, signal }))
    }).then(async (exit) => {
      // What it left behind may hold its output open, and its port.
      await this.#endAll(0)
      await Promise.race([drained, sleep(DRAIN_MS)])
      this.ended = true
      return exit
    })
  }

  tell(line) {
    this.process.stdin.write(`${line}\n`)
  }

  /** SIGTERM, then SIGKILL after the grace; done when nothing is left, or outlives SIGKILL. */
  async end(graceMs) {
    await this.#endAll(graceMs)
    await this.exited
  }

  #hear(name) {
    const output = new Output()
    const tell = (lines) => lines.length && this.lines(lines)
    const stream = this.process[name]
    stream.on('data', (data) => tell(output.feed(data)))
    return new Promise((resolve) => {
      stream.on('error', noop).on('close', () => resolve(tell(output.end())))
    })
  }

  async #endAll(graceMs) {
    if (!this.process.pid) return
    if (graceMs > 0) await this.#signalAndWait('SIGTERM', graceMs)
    if (!(await this.#signalAndWait('SIGKILL', KILL_MS))) note('a process outlives SIGKILL')
  }

  async #signalAndWait(signal, limitMs) {
    const until = Date.now() + limitMs
    const told = new Set()
    for (;;) {
      const living = processesOf(this.process.pid, `${MARK}=${this.mark}`)
      if (!living.length) return true
      if (Date.now() >= until) return false
      for (const pid of living.filter((pid) => signal === 'SIGKILL' || !told.has(pid))) {
        told.add(pid)
        try {
          process.kill(pid, signal)
        } catch {
          // gone meanwhile
        }
      }
      await sleep(POLL_MS)
    }
  }
}

/** The living processes of a group, and those that carry a variable, wherever they went. */
function processesOf(group, variable) {
  return fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      // proc(5): "pid (name) state ppid pgrp ...", where the name may hold anything.
      const status = fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
      const [state, , pgrp] = status.slice(status.lastIndexOf(')') + 2).split(' ')
      if (state === 'Z' || state === 'X') return false // ended; its parent has yet to ask
      if (Number(pgrp) === group) return true
      return fs.readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(variable)
    } catch {
      return false // gone, or another user's
    }
  })
}

// -- runs ------------------------------------------------------------------------------------------

/** One order carried out: dependencies, then the dev server, until its end. */
class Run {
  state = 'starting'
  exit = null
  #child = null
  #ending = null
  #toldAt = 0
  #detail = ''

  constructor(agent, order) {
    this.agent = agent
    this.order = order
    this.key = agent.dependencyKey()
    this.over = this.#carryOut()
  }

  get generation() {
    return this.order.generation
  }

  get isOver() {
    return this.state === 'exited'
  }

  /** Whether an order has been carried out already, or is being carried out. */
  covers({ generation, attempt }) {
    const { order } = this
    return !order.wait && generation === order.generation && attempt <= order.attempt
  }

  /** Whether its process, started for no project, serves one now. */
  get wasWarm() {
    return this.#toldAt > 0
  }

  /** Whether it waits for a project, or makes ready for that. */
  get isWarm() {
    return this.order.wait && !this.isOver
  }

  /** Whether a project with these dependencies may have it. */
  canServe(order, key) {
    if (!this.isWarm || this.#ending || key === null || key !== this.key) return false
    return this.state === 'installing' || Boolean(order.order)
  }

  /** Serve a project: by the process that waits, or else once the install is done. */
  handOver(order) {
    this.order = order
    if (this.state === 'installing') return this.#phase('installing', 'installing', this.#detail)
    this.#toldAt = Date.now()
    this.#phase('running', 'starting', order.title)
    this.#child.tell(order.order)
  }

  /** End everything; done when nothing is left. */
  async end(graceMs) {
    this.#ending ??= { graceMs }
    await this.#child?.end(graceMs)
    await this.over
  }

  async #carryOut() {
    let isInstalled = false
    const during = () => (!isInstalled ? 'install' : this.order.wait ? 'warm' : 'run')
    try {
      if (this.order.install) await this.#provide(this.order.install)
      isInstalled = true
      if (this.#ending) return this.#exited(during(), {})
      if (this.order.wait) this.#phase('loading', 'loading', this.order.title)
      else this.#phase('starting', 'starting', this.order.title)
      let exit = await this.#start()
      if (this.#toldAt && !this.#ending && Date.now() - this.#toldAt < WARM_MS) {
        this.#log(['(the process that had waited has ended; another one is started)'])
        this.#toldAt = 0
        exit = await this.#start()
      }
      this.#exited(during(), exit)
    } catch (error) {
      if (!(error instanceof Failure)) note(error.stack)
      this.#exited(during(), { reason: error.message, ...error.exit })
    }
  }

  #start() {
    const { command, env } = this.order
    const started = this.#spawn(command, env)
    this.state = this.order.wait ? 'loading' : 'running'
    return started
  }

  async #provide(install) {
    const { agent, key } = this
    if (key !== null && key === agent.installed) return
    agent.installed = null
    if (key !== null && key === agent.bakedKey()) {
      this.#phase('installing', 'installing', 'dependencies of the image')
      await this.#copyBaked()
    } else {
      this.#phase('installing', 'installing', install.title || path.basename(install.command[0]))
      await this.#install(install)
    }
    agent.installed = key
  }

  async #copyBaked() {
    const target = path.join(this.agent.workspace.app, 'node_modules')
    const filter = () => {
      if (this.#ending) throw new Failure('it was stopped')
      return true
    }
    await fs.promises.rm(target, { recursive: true, force: true })
    const mode = fs.constants.COPYFILE_FICLONE
    const options = { recursive: true, verbatimSymlinks: true, filter, mode }
    await fs.promises.cp(path.join(this.agent.settings.baked, 'node_modules'), target, options)
  }

  async #install({ command, env, limitSeconds }) {
    let late = false
    const running = this.#spawn(command, { ...installVariables(process.env), ...env })
    const limit = setTimeout(() => {
      late = true
      this.#child?.end(0)
    }, limitSeconds * 1000)
    const exit = await running
    clearTimeout(limit)
    if (late) throw new Failure(`it was not done within ${limitSeconds} s`, exit)
    if (exit.code !== 0 || this.#ending) throw new Failure('', exit)
  }

  async #spawn(command, env) {
    const { app, home, tmp, launchers } = this.agent.workspace
    const filled = command.map((part) => part.replaceAll('{launchers}', launchers))
    const places = [path.join(app, 'node_modules', '.bin'), path.dirname(process.execPath)]
    places.push(process.env.PATH || '/usr/local/bin:/usr/bin:/bin')
    const given = { HOME: home, TMPDIR: tmp, PATH: places.join(':'), ...env }
    const lines = (lines) => this.#heard(lines)
    const child = (this.#child = new Child(filled, { cwd: app, env: given, lines }))
    const { error, ...exit } = await child.exited
    this.#child = null
    if (!error) return exit
    const what = error.code === 'ENOENT' ? 'there is no such program' : error.message
    throw new Failure(`'${filled[0]}' cannot be run: ${what}; is it installed, and spelled so?`)
  }

  #heard(lines) {
    if (this.state === 'loading' && lines.includes(LOADED)) {
      this.#phase('waiting', 'waiting', '')
    } else if (!this.#ending) {
      // What the parts of a dev server say while they are ended one by one only alarms.
      this.#log(lines)
    }
  }

  #log(lines) {
    this.agent.events.add({ generation: this.generation, type: 'log', lines })
  }

  #phase(state, phase, detail) {
    this.state = state
    this.#detail = detail
    this.agent.events.add({ generation: this.generation, type: 'phase', phase, detail })
  }

  #exited(during, { code = null, signal = null, reason = '' }) {
    if (reason) this.#log([`preview: ${reason}`])
    this.state = 'exited'
    this.exit = { during, code, signal, reason, requested: this.#ending !== null }
    this.agent.events.add({ generation: this.generation, type: 'exit', ...this.exit })
  }
}

/** A run that ends before, or instead of, its dev server. */
class Failure extends Error {
  constructor(reason, exit = {}) {
    super(reason)
    this.exit = exit
  }
}

// -- the fields of calls (pure) --------------------------------------------------------------------

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)
const isStrings = (value) => Array.isArray(value) && value.every((part) => typeof part === 'string')
const hasNul = (text) => text.includes('\0')

const KINDS = {
  text: ['a string', (value) => typeof value === 'string'],
  count: ['a whole number from 0', (value) => Number.isSafeInteger(value) && value >= 0],
  seconds: ['a number of seconds', (value) => Number.isFinite(value) && value >= 0 && value <= 86400],
  list: ['a list', Array.isArray],
  object: ['an object', isObject],
  variables: [
    'an object of names and values without NUL',
    (value) =>
      isObject(value) &&
      Object.entries(value).every(
        ([name, text]) =>
          typeof text === 'string' && name && !name.includes('=') && !hasNul(name + text),
      ),
  ],
  command: [
    'a list of strings without NUL, the first of them a program',
    (value) => isStrings(value) && Boolean(value[0]) && !value.some(hasNul),
  ],
  line: ['one line of text', (value) => typeof value === 'string' && !/[\r\n]/.test(value)],
}

function field(body, name, kind, fallback) {
  const value = body[name]
  if (value === undefined && fallback !== undefined) return fallback
  const [what, holds] = KINDS[kind]
  if (!holds(value)) throw badRequest(`"${name}" must be ${what}`)
  return value
}

/** Files of a call: path, digest, and content if it was given. All of it is checked. */
function fileEntries(list) {
  const seen = new Set()
  return list.map((entry) => {
    if (!isObject(entry)) throw badRequest('each file must be an object')
    const given = checkPath(entry.path)
    if (seen.has(given)) throw badFiles(`'${given}' is given twice`)
    seen.add(given)
    const digest = field(entry, 'sha256', 'text')
    if (!/^[0-9a-f]{64}$/.test(digest)) throw badRequest('"sha256" must be 64 hexadecimal digits')
    const content = entry.content === undefined ? null : contentOf(entry)
    if (content && sha256(content) !== digest) {
      throw badFiles(`'${given}' does not have the sha256 that was given`)
    }
    return { path: given, sha256: digest, content }
  })
}

function contentOf(entry) {
  const text = field(entry, 'content', 'text')
  delete entry.content // large trees would be held twice
  const encoding = field(entry, 'encoding', 'text', 'utf-8')
  if (encoding === 'utf-8') return Buffer.from(text)
  if (encoding === 'base64') return Buffer.from(text, 'base64')
  throw badRequest('"encoding" must be "utf-8" or "base64"')
}

function refuseFilesAsFolders(paths) {
  const files = new Set(paths)
  for (const given of files) {
    for (const folder of foldersAbove(given)) {
      if (!files.has(folder)) continue
      throw badFiles(`'${folder}' is a file and, for '${given}', also a folder`)
    }
  }
}

function orderOf(body, { wait }) {
  const install = field(body, 'install', 'object', null)
  return {
    generation: field(body, 'generation', 'count'),
    attempt: field(body, 'attempt', 'count', 1),
    title: field(body, 'title', 'text', ''),
    command: field(body, 'command', 'command'),
    env: field(body, 'env', 'variables', {}),
    order: wait ? '' : field(body, 'order', 'line', ''),
    install: install && {
      command: field(install, 'command', 'command'),
      env: field(install, 'env', 'variables', {}),
      title: field(install, 'title', 'text', ''),
      limitSeconds: field(install, 'limitSeconds', 'seconds', 300),
    },
    wait,
  }
}

function launchersOf(body) {
  const launchers = Object.entries(field(body, 'launchers', 'object', {}))
  for (const [name, text] of launchers) {
    if (!/^[A-Za-z0-9][\w.-]{0,99}$/.test(name) || typeof text !== 'string') {
      throw badRequest('"launchers" must be an object of file names and their text')
    }
  }
  return launchers
}

// -- the agent -------------------------------------------------------------------------------------

class Agent {
  events = new Events()
  installed = null
  sessionId = ''
  generation = 0
  revision = 0
  #digests = new Map()
  leaving = false
  #run = null
  #queue = Promise.resolve()
  #bakedKey

  constructor(settings) {
    this.settings = settings
    this.workspace = new Workspace(settings.root)
  }

  dependencyKey() {
    return dependencyKey((name) => this.workspace.read(name))
  }

  bakedKey() {
    const { baked } = this.settings
    if (!baked) return null
    this.#bakedKey ??= dependencyKey((name) => readOrNull(path.join(baked, name)))
    return this.#bakedKey
  }

  /** Calls that change something come one after the other. */
  inTurn(work) {
    const turn = this.#queue.then(work)
    this.#queue = turn.catch(noop)
    return turn
  }

  state({ digests = true } = {}) {
    const run = this.#run
    return {
      sessionId: this.sessionId,
      generation: this.generation,
      revision: this.revision,
      state: run?.state ?? 'idle',
      ...(run && { run: { generation: run.generation, attempt: run.order.attempt } }),
      ...(run?.exit && { exit: run.exit }),
      ...(digests && { digests: Object.fromEntries(this.#digests) }),
      lastEvent: this.events.last,
    }
  }

  async putTree(body) {
    const sessionId = field(body, 'sessionId', 'text')
    const generation = field(body, 'generation', 'count')
    const revision = field(body, 'revision', 'count')
    const files = fileEntries(field(body, 'files', 'list'))
    refuseFilesAsFolders(files.map((file) => file.path))
    this.#fence(generation)
    const isBusy = this.#run && !this.#run.isOver && !this.#run.isWarm
    if (isBusy && sessionId !== this.sessionId) {
      throw new Refusal(409, 'occupied', `session ${this.sessionId} runs here`)
    }
    const isSame = generation === this.generation && sessionId === this.sessionId
    if (isSame && revision < this.revision) {
      throw this.#elsewhere()
    }
    await this.#fillIn(files)
    if (generation > this.generation && isBusy) await this.#run?.end(this.settings.graceMs)
    Object.assign(this, { sessionId, generation, revision: 0 }) // until all is written
    const wanted = new Set(files.map((file) => file.path))
    this.workspace.sweep(wanted)
    for (const known of this.#digests.keys()) if (!wanted.has(known)) this.#digests.delete(known)
    for (const file of files) {
      await breathe()
      this.#write(file, { unlessSame: true })
    }
    this.revision = revision
    return { status: 200, body: this.state({ digests: false }) }
  }

  async patchFiles(body) {
    const generation = field(body, 'generation', 'count')
    const base = field(body, 'baseRevision', 'count')
    const revision = field(body, 'revision', 'count')
    const write = fileEntries(field(body, 'write', 'list', []))
    const remove = field(body, 'delete', 'list', []).map(checkPath)
    if (revision <= base) throw badRequest('"revision" must be higher than "baseRevision"')
    this.#fence(generation)
    this.#needsTree(generation)
    if (revision === this.revision) return { status: 200, body: { revision } } // its answer was lost
    if (base !== this.revision) throw this.#elsewhere()
    await this.#fillIn(write)
    const paths = write.map((file) => file.path)
    refuseFilesAsFolders(paths)
    this.workspace.checkPlaces(paths, remove)
    for (const given of remove) {
      this.workspace.delete(given)
      this.#digests.delete(given)
    }
    for (const file of write) this.#write(file)
    this.revision = revision
    return { status: 200, body: { revision } }
  }

  readFiles(body) {
    const longest = field(body, 'longest', 'count')
    const files = []
    let total = 0
    for (const given of field(body, 'paths', 'list').map(checkPath)) {
      const content = this.workspace.read(given, longest)
      if (content === null) continue
      total += content.length
      if (total > this.settings.maxInflatedBytes) {
        throw new Refusal(413, 'too_large', 'these files are too large together: ask for fewer')
      }
      files.push({ path: given, content: content.toString('base64') })
    }
    return { status: 200, body: { files } }
  }

  async start(body) {
    const order = orderOf(body, { wait: false })
    const launchers = launchersOf(body)
    this.#fence(order.generation)
    this.#needsTree(order.generation)
    const run = this.#run
    if (run?.covers(order)) return { status: 200, body: { state: run.state, warm: run.wasWarm } }
    if (run?.canServe(order, this.dependencyKey())) {
      this.#writeLaunchers(launchers)
      run.handOver(order)
    } else {
      await run?.end(this.settings.graceMs)
      this.#begin(order, launchers)
    }
    return { status: 202, body: { state: this.#run.state, warm: this.#run.wasWarm } }
  }

  async warm(body) {
    const order = orderOf(body, { wait: true })
    const launchers = launchersOf(body)
    this.#fence(order.generation)
    this.#needsTree(order.generation)
    const run = this.#run
    if (run && !run.isOver) {
      if (!run.order.wait) throw new Refusal(409, 'occupied', `session ${this.sessionId} runs here`)
      return { status: 200, body: { state: run.state } }
    }
    this.#begin(order, launchers)
    return { status: 202, body: { state: this.#run.state } }
  }

  async stop(body) {
    const grace = field(body, 'graceSeconds', 'seconds')
    const generation = field(body, 'generation', 'count', this.generation)
    this.#fence(generation)
    await this.end(grace * 1000)
    return { status: 200, body: this.state({ digests: false }) }
  }

  async end(graceMs) {
    await this.#run?.end(graceMs)
  }

  #begin(order, launchers) {
    if (this.leaving) throw new Refusal(503, 'leaving', 'this agent has been told to end')
    this.#writeLaunchers(launchers)
    this.#run = new Run(this, order)
  }

  #writeLaunchers(launchers) {
    for (const [name, text] of launchers) {
      const file = path.join(this.workspace.launchers, name)
      fs.writeFileSync(`${file}.new`, text)
      fs.renameSync(`${file}.new`, file)
    }
  }

  #write(file, { unlessSame = false } = {}) {
    const held = unlessSame && this.#digests.has(file.path) && this.workspace.read(file.path)
    if (!held || sha256(held) !== file.sha256) this.workspace.put(file.path, file.content)
    this.#digests.set(file.path, file.sha256)
  }

  /** Find the content that was left out. It may have been changed on the disk, so look there. */
  async #fillIn(files) {
    const places = new Map([...this.#digests].map(([known, digest]) => [digest, known]))
    const missing = []
    for (const file of files.filter((file) => file.content === null)) {
      await breathe()
      const place = places.get(file.sha256)
      const held = place === undefined ? null : this.workspace.read(place)
      if (held && sha256(held) === file.sha256) file.content = held
      else missing.push(file.path)
    }
    if (missing.length) {
      const sentence = `the content of ${missing.length} files is not known here`
      throw new Refusal(409, 'missing', sentence, { paths: missing })
    }
  }

  #fence(generation) {
    if (generation >= this.generation) return
    const sentence = `generation ${generation} is outdated: ${this.generation} was here`
    throw new Refusal(409, 'fenced', sentence, { generation: this.generation })
  }

  #needsTree(generation) {
    if (generation === this.generation && this.sessionId) return
    throw new Refusal(409, 'no_tree', `the files of generation ${generation} have not been pushed`)
  }

  #elsewhere() {
    const { revision } = this
    return new Refusal(409, 'revision', `the files are at revision ${revision}`, { revision })
  }
}

// -- HTTP ------------------------------------------------------------------------------------------

const CALLS = {
  '/healthz': { GET: (agent) => ({ status: 200, body: { ready: !agent.leaving } }) },
  '/v1/state': {
    GET: (agent, { query }) => {
      return { status: 200, body: agent.state({ digests: query.get('digests') !== 'false' }) }
    },
  },
  '/v1/tree': { PUT: (agent, { body }) => agent.inTurn(() => agent.putTree(body)) },
  '/v1/files': { PATCH: (agent, { body }) => agent.inTurn(() => agent.patchFiles(body)) },
  '/v1/read': { POST: (agent, { body }) => agent.readFiles(body) },
  '/v1/start': { POST: (agent, { body }) => agent.inTurn(() => agent.start(body)) },
  '/v1/warm': { POST: (agent, { body }) => agent.inTurn(() => agent.warm(body)) },
  '/v1/stop': { POST: (agent, { body }) => agent.inTurn(() => agent.stop(body)) },
  '/v1/events': {
    GET: (agent, { query, response }) => {
      const after = query.get('after') ?? '0'
      if (!/^\d{1,15}$/.test(after)) throw badRequest('"after" must be the number of an event')
      response.statusCode = 200
      response.setHeader('Content-Type', 'application/x-ndjson')
      response.setHeader('Cache-Control', 'no-store')
      agent.events.follow(response, Number(after))
    },
  },
}

async function serve(agent, request, response) {
  try {
    const answer = await dispatch(agent, request, response)
    if (answer) send(request, response, answer.status, answer.body)
  } catch (error) {
    if (response.headersSent) return void response.destroy()
    if (response.destroyed) return // the caller has gone
    const { status, code, message, more } = refusalOf(error)
    send(request, response, status, { code, detail: message, ...more })
  }
}

function refusalOf(error) {
  if (error instanceof Refusal) return error
  if (error.code === 'ENOSPC' || error.code === 'EDQUOT') {
    return new Refusal(507, 'no_space', 'there is no space left on the disk of the preview')
  }
  note(error.stack)
  return new Refusal(500, 'internal_error', 'the agent failed; see its log')
}

function dispatch(agent, request, response) {
  const [pathname, queryText = ''] = request.url.split(/\?(.*)/s)
  const methods = Object.hasOwn(CALLS, pathname) ? CALLS[pathname] : null
  if (pathname !== '/healthz') authorize(agent.settings.token, request.headers.authorization)
  if (!methods) throw new Refusal(404, 'not_found', 'there is no such call')
  const call = Object.hasOwn(methods, request.method) ? methods[request.method] : null
  if (!call) {
    response.setHeader('Allow', Object.keys(methods).join(', '))
    throw new Refusal(405, 'method_not_allowed', 'this call has another method')
  }
  if (request.method === 'GET') {
    return call(agent, { query: new URLSearchParams(queryText), response })
  }
  return readBody(agent.settings, request).then((body) => call(agent, { body }))
}

function authorize(token, given = '') {
  const [scheme, ...rest] = given.split(' ')
  const digest = (text) => createHash('sha256').update(text).digest()
  const same = timingSafeEqual(digest(rest.join(' ')), digest(token))
  if (scheme.toLowerCase() !== 'bearer' || !same) {
    throw new Refusal(401, 'unauthorized', 'the token is missing or wrong')
  }
}

async function readBody({ maxBodyBytes, maxInflatedBytes }, request) {
  const encoding = request.headers['content-encoding'] ?? 'identity'
  if (!['identity', 'gzip'].includes(encoding)) {
    throw new Refusal(415, 'unsupported_encoding', 'the body may be encoded with gzip only')
  }
  let data = await collect(request, maxBodyBytes)
  if (encoding === 'gzip') data = await inflate(data, maxInflatedBytes)
  let body
  try {
    data = new TextDecoder('utf-8', { fatal: true }).decode(data)
    body = JSON.parse(data)
  } catch (error) {
    const what = error instanceof SyntaxError ? error.message.slice(0, 200) : 'it is not UTF-8'
    throw badRequest(`the body is not JSON: ${what}`)
  }
  if (!isObject(body)) throw badRequest('the body must be a JSON object')
  return body
}

const tooLarge = (limit) => new Refusal(413, 'too_large', `the body has more than ${limit} bytes`)

function collect(request, limit) {
  if (Number(request.headers['content-length'] ?? 0) > limit) throw tooLarge(limit)
  return new Promise((resolve, reject) => {
    const parts = []
    let size = 0
    request.on('data', (part) => {
      size += part.length
      if (size <= limit) return parts.push(part)
      parts.length = 0
      reject(tooLarge(limit))
    })
    request.on('end', () => resolve(Buffer.concat(parts)))
    request.on('error', reject)
  })
}

function inflate(sent, limit) {
  return new Promise((resolve, reject) => {
    gunzip(sent, { maxOutputLength: limit }, (error, data) => {
      if (!error) resolve(data)
      else if (error.code === 'ERR_BUFFER_TOO_LARGE') reject(tooLarge(limit))
      else reject(badRequest('the body is not the gzip that its head promises'))
    })
  })
}

function send(request, response, status, body) {
  const data = Buffer.from(JSON.stringify(body))
  response.statusCode = status
  response.setHeader('Content-Type', 'application/json')
  response.setHeader('Content-Length', data.length)
  if (request.complete) return void response.end(data)
  // Who still sends would get a reset instead of the answer, were the connection closed at once.
  response.shouldKeepAlive = false
  response.write(data)
  const close = () => response.end()
  setTimeout(close, LINGER_MS).unref()
  request.on('end', close).on('error', close).resume()
}

function listen(agent, { host, port, headMs, bodyMs }) {
  const server = createServer(
    {
      maxHeaderSize: MAX_HEAD_BYTES,
      headersTimeout: headMs,
      requestTimeout: bodyMs,
      connectionsCheckingInterval: 1000,
      keepAliveTimeout: 75_000, // longer than clients keep connections, who would run into the end
    },
    (request, response) => void serve(agent, request, response),
  )
  server.maxConnections = 64
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, () => resolve(server))
  })
}

// -- main ------------------------------------------------------------------------------------------

function readSettings(env) {
  const number = (name, fallback) => {
    const value = Number(env[name] || fallback)
    if (Number.isFinite(value) && value >= 0) return value
    throw new Error(`${name} must be a number`)
  }
  if (!env.PREVIEW_AGENT_TOKEN) throw new Error('PREVIEW_AGENT_TOKEN is not set')
  return {
    token: env.PREVIEW_AGENT_TOKEN,
    host: env.PREVIEW_AGENT_HOST || '0.0.0.0',
    port: number('PREVIEW_AGENT_PORT', 8700),
    root: env.PREVIEW_ROOT || '/preview',
    baked: env.PREVIEW_BAKED || '',
    graceMs: 1000 * number('PREVIEW_AGENT_GRACE_SECONDS', 5),
    headMs: 1000 * number('PREVIEW_AGENT_HEAD_SECONDS', 10),
    bodyMs: 1000 * number('PREVIEW_AGENT_BODY_SECONDS', 60),
    maxBodyBytes: number('PREVIEW_AGENT_MAX_BODY_BYTES', 64 * 2 ** 20),
    maxInflatedBytes: number('PREVIEW_AGENT_MAX_INFLATED_BYTES', 96 * 2 ** 20),
  }
}

async function leave(agent, server) {
  if (agent.leaving) return
  agent.leaving = true
  server.close()
  await agent.end(agent.settings.graceMs)
  agent.events.close()
  await sleep(10) // for the last of what was written
  process.exit(0)
}

async function main() {
  process.on('uncaughtException', (error) => note(error.stack ?? String(error)))
  try {
    const agent = new Agent(readSettings(process.env))
    const server = await listen(agent, agent.settings)
    for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => void leave(agent, server))
    const { address, port } = server.address()
    note(`ready on ${address} port ${port}`)
  } catch (error) {
    note(`cannot start: ${error.message}`)
    process.exit(1)
  }
}

if (process.argv[1] && fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main()
}
