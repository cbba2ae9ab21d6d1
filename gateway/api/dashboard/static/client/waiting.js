/** How long a call may take, and when it is tried again. */

import { ApiError, GatewayError, NoGateway, Unreachable } from "./errors.js";

const FIRST_PAUSE = 0.25;
const LONGEST_PAUSE = 5;
/** After so long without a failure the next one is a first one. */
const CALM_SECONDS = 60;
/** What a later try can mend. */
const PASSING = new Set([429, 502, 503, 504]);
/** Nothing was sent: Node.js says so, browsers do not. */
const NOT_SENT = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"]);

/** How often, and for how long, something is tried again. */
export class Patience {
  #signal;
  #failures = 0;
  #failedAt = 0;
  #deadline;

  /** @param {number} seconds @param {AbortSignal} [signal] */
  constructor(seconds, signal) {
    this.#signal = signal;
    this.#deadline = now() + seconds;
  }

  /** It has worked once: from now on it is tried for as long as anybody wants it. */
  worked() {
    this.#deadline = Infinity;
  }

  /** All is well: the next failure is the first one. */
  calm() {
    this.#failures = 0;
  }

  /** Wait before the next try. Throws `error` if there is to be none. */
  async pause(error) {
    this.#signal?.throwIfAborted();
    const passing = error instanceof ApiError ? PASSING.has(error.status) : error instanceof Unreachable;
    if (!passing || error instanceof NoGateway) throw error;
    if (now() - this.#failedAt > CALM_SECONDS) this.calm();
    this.#failedAt = now();
    const most = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.#failures++);
    // Jitter, so that those whom one replica lost do not all come back at the same moment.
    const seconds = (error.retryAfter ?? 0) + most * (0.5 + Math.random() / 2);
    if (now() + seconds > this.#deadline) throw error;
    await sleep(seconds, this.#signal);
  }
}

/** Aborts a call with its caller's signal, or after so many seconds. */
export class Limit {
  #caller;
  #controller = new AbortController();
  #seconds;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #isOver = false;
  #follow = () => this.#controller.abort(this.#caller?.reason);

  constructor(caller, seconds) {
    caller?.throwIfAborted();
    this.#caller = caller;
    this.#seconds = seconds;
    caller?.addEventListener("abort", this.#follow);
    this.restart();
  }

  get signal() {
    return this.#controller.signal;
  }

  restart() {
    this.pause();
    this.#timer = setTimeout(() => {
      this.#isOver = true;
      this.#controller.abort();
    }, this.#seconds * 1000);
  }

  pause() {
    clearTimeout(this.#timer);
  }

  end() {
    this.pause();
    this.#caller?.removeEventListener("abort", this.#follow);
    this.#controller.abort();
  }

  /** What `error`, which came of the call, means. */
  explain(error, url) {
    if (this.#caller?.aborted) return this.#caller.reason;
    if (error instanceof GatewayError) return error;
    const why = this.#isOver
      ? `nothing was heard for ${this.#seconds} s`
      : (error?.cause?.message ?? error?.message);
    return new Unreachable(`no gateway answers at ${url || "this address"}: ${why}`, { cause: error });
  }
}

/** Whether the gateway has certainly done nothing for a call. */
export function wasNotDone(error) {
  if (error instanceof ApiError) return error.status === 429 || error.code === "overloaded";
  return error instanceof Unreachable && NOT_SENT.has(error.cause?.cause?.code);
}

/** Seconds of a clock that is never set. */
export function now() {
  return performance.now() / 1000;
}

/** @param {number} seconds @param {AbortSignal} [signal] */
function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      if (signal?.aborted) reject(signal.reason);
      else resolve(undefined);
    };
    const timer = setTimeout(done, seconds * 1000);
    signal?.addEventListener("abort", done);
  });
}
