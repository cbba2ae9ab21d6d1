/**
 * A client of the preview gateway's HTTP API, for browsers and Node.js 20 or newer.
 *
 * It waits instead of failing: what a later try can mend (no connection, 429, 502, 503, 504) is
 * tried again until it succeeds or `patienceSeconds` are over, so that callers need no loop of
 * their own. Tokens go into header fields, never into addresses.
 *
 * @module preview-gateway-client
 */

import { ApiError, GatewayError, NoGateway, PreviewEnded, Unreachable, WaitTimeout } from "./errors.js";
import { EventParser } from "./events.js";
import { decodeFile, encodeFiles } from "./files.js";
import { Limit, Patience, now, wasNotDone } from "./waiting.js";

export { ApiError, GatewayError, PreviewEnded, Unreachable, WaitTimeout };
export { EventParser, decodeFile, encodeFiles };

const API = "/api/v1/sessions";
const ENDED = new Set(["stopped", "failed", "expired"]);
/** One long poll: shorter than the 60 s after which proxies in front give up. */
const POLL_SECONDS = 25;
/** Beyond what the gateway itself may wait before it answers. */
const CALL_SECONDS = 30;
const UPLOAD_SECONDS = 120;
/** The gateway says something every 15 s: a longer silence means a dead connection. */
const SILENCE_SECONDS = 40;

/** Calls of one gateway. Every call takes an AbortSignal as `signal`. */
export class Client {
  #url;
  #token;
  #fetch;
  #patience;
  #silence;

  /**
   * @param {string | URL} url the gateway's address; "" for that of the page
   * @param {import("./index.d.ts").ClientOptions} [options]
   */
  constructor(url = "", { token = "", fetch, patienceSeconds = 30, silenceSeconds = SILENCE_SECONDS } = {}) {
    this.#url = String(url).replace(/\/+$/, "");
    this.#token = token;
    // Called without `this`: browsers want theirs to be the window.
    this.#fetch = fetch ?? ((input, init) => globalThis.fetch(input, init));
    this.#patience = patienceSeconds;
    this.#silence = silenceSeconds;
  }

  /** Whether a gateway answers there, at once. */
  async alive({ signal } = {}) {
    try {
      return Boolean((await this.#json("GET", "/livez", { signal, patience: 0 })).version);
    } catch (error) {
      if (error instanceof GatewayError) return false;
      throw error;
    }
  }

  /**
   * Make a session. Repeated as often as it takes, it is made once: by `idempotencyKey`, which is
   * made up if there is none. With `wait` resolves when the preview is ready.
   */
  async create(
    { files, archive, ...fields } = {},
    { wait = false, timeoutSeconds, idempotencyKey = randomKey(), signal } = {},
  ) {
    const content = archive
      ? { archive, query: { session: JSON.stringify(fields) } }
      : { body: { ...fields, ...(files && { files: encodeFiles(files) }) } };
    const headers = { "Idempotency-Key": idempotencyKey };
    const session = await this.#json("POST", API, { ...content, headers, seconds: UPLOAD_SECONDS, signal });
    return wait ? this.wait(session.id, { until: "ready", timeoutSeconds, signal }) : session;
  }

  /** One session, ended ones included; a registration under way is waited for. */
  async get(id, { signal } = {}) {
    return this.#json("GET", one(id), { signal });
  }

  /**
   * The session once it is ready (`until: "ready"`, which wakes it) or has ended (`"ended"`).
   * @throws {PreviewEnded} if it has ended and was to be ready
   * @throws {WaitTimeout}
   */
  async wait(id, { until = "ready", timeoutSeconds = 120, signal } = {}) {
    const deadline = now() + timeoutSeconds;
    for (;;) {
      const timeout = Math.max(0, Math.min(POLL_SECONDS, deadline - now()));
      const query = { wait: until, timeout: timeout.toFixed(3) };
      const session = await this.#json("GET", one(id), { query, seconds: CALL_SECONDS + timeout, signal });
      if (session.state === until || (until === "ended" && ENDED.has(session.state))) return session;
      if (ENDED.has(session.state)) throw new PreviewEnded(session);
      if (now() >= deadline) throw new WaitTimeout(session, until, timeoutSeconds);
    }
  }

  /** One page of the list, newest first: an empty `cursor` is the end. */
  async page({ state, visibility, owner, metadata = {}, limit, cursor, signal } = {}) {
    const members = Object.entries(metadata).map(([name, value]) => [
      `metadata.${name}`,
      typeof value === "string" ? value : JSON.stringify(value),
    ]);
    const query = { state, visibility, owner, limit, cursor, ...Object.fromEntries(members) };
    return this.#json("GET", API, { query, signal });
  }

  /** All sessions that are wanted, newest first, page by page as they are read. */
  async *list(options = {}) {
    let cursor = "";
    do {
      const page = await this.page({ ...options, cursor });
      yield* page.sessions;
      cursor = page.cursor;
    } while (cursor);
  }

  /** Change metadata (merged: null removes a member), visibility, life time. */
  async patch(id, { metadata, visibility, ttlSeconds }, { signal } = {}) {
    return this.#json("PATCH", one(id), { body: { metadata, visibility, ttlSeconds }, signal });
  }

  /** The files as the API has them; `decodeFile` makes bytes of one. */
  async files(id, { signal } = {}) {
    return this.#json("GET", one(id, "/files"), { seconds: UPLOAD_SECONDS, signal });
  }

  /** The files as the bytes of a tar.gz, with their revision. */
  async archive(id, { signal } = {}) {
    const call = { query: { format: "tar.gz" }, seconds: UPLOAD_SECONDS, signal };
    return this.#ask("GET", one(id, "/files"), call, async (response) => {
      const revision = Number((response.headers.get("ETag") ?? "").replaceAll('"', "")) || 0;
      return { revision, bytes: new Uint8Array(await response.arrayBuffer()) };
    });
  }

  /** Write and delete files of a running preview; `archive` is a tar.gz of files to write. */
  async edit(id, { write, delete: gone = [], archive, baseRevision } = {}, { signal } = {}) {
    const body = { write: encodeFiles(write ?? {}), delete: gone, baseRevision };
    const upload = archive ? { archive, query: { delete: gone, baseRevision } } : { body };
    return this.#upload("PATCH", id, upload, baseRevision, signal);
  }

  /** These files instead of all that are there, in one step. */
  async replaceFiles(id, { files, archive, baseRevision } = {}, { signal } = {}) {
    const body = { files: encodeFiles(files ?? {}), baseRevision };
    const upload = archive ? { archive, query: { baseRevision } } : { body };
    return this.#upload("PUT", id, upload, baseRevision, signal);
  }

  /** Stop; of a session that has ended already it says so. */
  async stop(id, { signal } = {}) {
    return this.#json("POST", one(id, "/stop"), { body: {}, signal });
  }

  /** Stop, and forget files and events. */
  async delete(id, { signal } = {}) {
    await this.#ask("DELETE", one(id), { signal }, discard);
  }

  /**
   * Post an event. If its answer is lost it is posted again, so it may come twice; with
   * `once: true` it is not, and Unreachable leaves open whether it is there.
   */
  async postEvent(id, { type, data, t }, { once = false, signal } = {}) {
    return this.#json("POST", one(id, "/events"), { body: { type, data, t }, once, signal });
  }

  /**
   * The session's events after `after` (an event's id), without gap or repeat over lost connections
   * and replicas, until the session has ended. Waits for a registration under way.
   *
   * Once it was connected it reconnects for as long as it is read: abort `signal`, or leave the
   * loop, to end it. A session that was begun anew has an `end` in the middle.
   */
  async *events(id, { after = "0", signal } = {}) {
    const trying = new Patience(this.#patience, signal);
    let last = "";
    for (;;) {
      const hadEnded = last === "end";
      try {
        for await (const event of this.#connection(id, after, signal, trying)) {
          trying.calm();
          // After a cut right behind the end: it is said again, without an id.
          if (hadEnded && event.type === "end" && !event.id) return;
          after = event.id || after;
          last = event.type;
          yield event;
        }
        if (last === "end") return;
        await trying.pause(new Unreachable("the replica has closed the event stream"));
      } catch (error) {
        await trying.pause(error);
      }
    }
  }

  /** The end of the log as text. */
  async logs(id, { tail, signal } = {}) {
    return this.#ask("GET", one(id, "/logs"), { query: { tail }, signal }, (response) => response.text());
  }

  /**
   * What opens the event stream once, within 30 s, where no header can be sent:
   * `new EventSource((await client.ticket(id)).url)`.
   */
  async ticket(id, { signal } = {}) {
    return this.#json("POST", one(id, "/ticket"), { signal });
  }

  /** A link that opens a private preview in a browser. */
  async createLink(id, { ttlSeconds, signal } = {}) {
    return this.#json("POST", one(id, "/links"), { body: { ttlSeconds }, signal });
  }

  /** Void all links, their cookies and the session's tokens. */
  async revokeLinks(id, { signal } = {}) {
    await this.#ask("DELETE", one(id, "/links"), { signal }, discard);
  }

  /** A token that reads this session, and changes nothing. */
  async createToken(id, { ttlSeconds, signal } = {}) {
    return this.#json("POST", one(id, "/tokens"), { body: { ttlSeconds }, signal });
  }

  /** The replicas with a lease. */
  async replicas({ signal } = {}) {
    return (await this.#json("GET", "/api/v1/replicas", { signal })).replicas;
  }

  // -- how calls are made ------------------------------------------------------------------------

  async #upload(method, id, upload, baseRevision, signal) {
    // Sent again after a lost answer, an edit would conflict with itself.
    const call = { ...upload, once: baseRevision !== undefined, seconds: UPLOAD_SECONDS, signal };
    return this.#json(method, one(id, "/files"), call);
  }

  async #json(method, path, call) {
    return this.#ask(method, path, call, async (response) => {
      const answer = parsed(await response.text());
      if (answer) return answer;
      throw new NoGateway(`what answers at ${this.#url || "this address"} is no preview gateway`);
    });
  }

  /** One call, tried until it succeeds, is refused for good, or patience is at its end. */
  async #ask(method, path, call, read) {
    const trying = new Patience(call.patience ?? this.#patience, call.signal);
    for (;;) {
      try {
        return await this.#once(method, path, call, read);
      } catch (error) {
        if (call.once && !wasNotDone(error)) throw error;
        await trying.pause(error);
      }
    }
  }

  async #once(method, path, { query, body, archive, headers, seconds = CALL_SECONDS, signal }, read) {
    const limit = new Limit(signal, seconds);
    try {
      const content = archive ?? (body && JSON.stringify(body));
      const type = archive ? "application/gzip" : "application/json";
      const fields = { ...(content && { "Content-Type": type }), ...headers };
      const init = { method, body: content, headers: fields };
      return await read(await this.#open(path + search(query), init, limit));
    } catch (error) {
      throw limit.explain(error, this.#url);
    } finally {
      limit.end();
    }
  }

  /** A response that is a success. @throws {ApiError} */
  async #open(path, init, limit) {
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    const headers = { ...init.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    const options = { ...init, headers, signal: limit.signal, credentials: "omit", cache: "no-store" };
    const response = await this.#fetch(this.#url + path, options);
    if (response.ok) return response;
    const text = await response.text();
    const problem = parsed(text) ?? { detail: text.slice(0, 500) };
    const retryAfter = Number.parseFloat(response.headers.get("Retry-After") ?? "");
    throw new ApiError(response.status, problem, Number.isFinite(retryAfter) ? retryAfter : null);
  }

  /** The events of one connection. */
  async *#connection(id, after, signal, trying) {
    const limit = new Limit(signal, this.#silence);
    const parser = new EventParser();
    let reader;
    try {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": after };
      const response = await this.#open(one(id, "/events"), { headers }, limit);
      trying.worked();
      reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        limit.restart(); // time in which the caller thinks does not count
        const { done, value } = await reader.read();
        limit.pause();
        if (done) return;
        yield* parser.feed(value);
      }
    } catch (error) {
      throw limit.explain(error, this.#url);
    } finally {
      limit.end(); // aborts what is still open, also when the caller leaves the loop
      reader?.cancel().catch(() => {});
    }
  }
}

function one(id, rest = "") {
  return `${API}/${encodeURIComponent(id)}${rest}`;
}

function search(query = {}) {
  const pairs = Object.entries(query).flatMap(([name, value]) => [value].flat().map((item) => [name, item]));
  const given = pairs.filter(([, value]) => value !== undefined && value !== "");
  const text = new URLSearchParams(given).toString();
  return text && `?${text}`;
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** @param {Response} response */
async function discard(response) {
  await response.arrayBuffer();
}

function randomKey() {
  // randomUUID() is for pages that came over https only.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
