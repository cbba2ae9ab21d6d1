/** What calls throw, besides the reason of an AbortSignal and misuse (TypeError). */

/** Root of the tree. */
export class GatewayError extends Error {
  name = "GatewayError";
}

/** The gateway refused a call; `code` is stable, `problem` its RFC 9457 document. */
export class ApiError extends GatewayError {
  name = "ApiError";

  /**
   * @param {number} status
   * @param {Record<string, any>} problem
   * @param {number | null} retryAfter seconds
   */
  constructor(status, problem, retryAfter = null) {
    super(String(problem.detail || problem.title || `status ${status}`));
    this.status = status;
    this.code = typeof problem.code === "string" ? problem.code : "";
    this.problem = problem;
    this.retryAfter = retryAfter;
  }
}

/** Nothing answers there, not in time, or no gateway; `cause` says more. */
export class Unreachable extends GatewayError {
  name = "Unreachable";
}

/** A preview that was waited for has ended instead; `session` says how and why. */
export class PreviewEnded extends GatewayError {
  name = "PreviewEnded";

  /** @param {import("./index.d.ts").Session} session */
  constructor(session) {
    super(`preview ${session.id} is ${session.state}: ${session.reason}`);
    this.session = session;
  }
}

/** What was waited for has not come in time; `session` is as it was last seen. */
export class WaitTimeout extends GatewayError {
  name = "WaitTimeout";

  /** @param {import("./index.d.ts").Session} session @param {string} until @param {number} seconds */
  constructor(session, until, seconds) {
    super(`preview ${session.id} is ${session.state}, not ${until}, after ${seconds} s`);
    this.session = session;
  }
}

/** Something else answers there: trying again does not help. */
export class NoGateway extends Unreachable {}
