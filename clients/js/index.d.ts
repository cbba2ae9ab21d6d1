export type State =
  | "registered"
  | "starting"
  | "ready"
  | "sleeping"
  | "stopping"
  | "stopped"
  | "failed"
  | "expired";
export type Visibility = "public" | "private";
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Metadata = { [name: string]: Json };

export interface Session {
  id: string;
  state: State;
  generation: number;
  revision: number;
  previewUrl: string;
  wsUrl: string;
  eventsUrl: string;
  /** The id of the replica that runs its dev server; "" for none. */
  owner: string;
  createdAt: string;
  expiresAt: string;
  visibility: Visibility;
  framework: string;
  target: string;
  idleSeconds: number;
  metadata: Metadata;
  /** Why it has ended; "" before. */
  reason: string;
  endedAt: string | null;
}

export interface SourceFile {
  path: string;
  content: string;
  encoding?: "utf-8" | "base64";
}
/** Files by path, or as the API has them. */
export type Files = Record<string, string | Uint8Array | ArrayBuffer> | SourceFile[];
/** A tar.gz. */
export type Archive = Uint8Array | ArrayBuffer | Blob;

export interface NewSession {
  id?: string;
  files?: Files;
  /** Instead of `files`. */
  archive?: Archive;
  packageJson?: { [name: string]: Json };
  framework?: string;
  command?: string | string[];
  env?: Record<string, string>;
  target?: string;
  visibility?: Visibility;
  ttlSeconds?: number;
  idleSeconds?: number;
  metadata?: Metadata;
}

export interface Options {
  signal?: AbortSignal;
}
export interface WaitOptions extends Options {
  /** 120 by default. */
  timeoutSeconds?: number;
}
export interface CreateOptions extends WaitOptions {
  /** Resolve when the preview is ready. */
  wait?: boolean;
  idempotencyKey?: string;
}
export interface ListOptions extends Options {
  state?: State;
  visibility?: Visibility;
  owner?: string;
  metadata?: Metadata;
  /** Sessions in a page: 100 by default, at most 1000. */
  limit?: number;
}
export interface Page {
  sessions: Session[];
  cursor: string;
}
export interface Edited {
  id: string;
  revision: number;
  state: State;
}
export interface Stopped {
  id: string;
  state: "stopped" | "stopping";
  endedAs: "" | "stopped" | "failed" | "expired";
  alreadyStopped: boolean;
  reason: string;
  stoppedAt: string | null;
}
export interface Posted {
  id: string;
  sessionId: string;
  late: boolean;
}
export interface Ticket {
  ticket: string;
  expiresAt: string;
  url: string;
}
export interface Replica {
  id: string;
  incarnation: string;
  url: string;
}

/** An event of a stream. `id` is "" for what cannot be resumed after. */
export type PreviewEvent = { id: string } & (
  | { type: "state"; data: { state: State; generation: number; previousState?: State; reason?: string } }
  | { type: "log"; data: { lines: string[] } }
  | { type: "event"; data: { type: string; source?: "client"; late?: true; data?: Json; [name: string]: unknown } }
  | { type: "degraded"; data: { reason: string } }
  | { type: "end"; data: { state: State | ""; reason: string } }
);

export interface ClientOptions {
  /** An API token, or what gives one; asked for each call, so that it may change. */
  token?: string | (() => string | Promise<string>);
  /** Instead of the global one. */
  fetch?: typeof fetch;
  /** How long calls are tried again while the gateway cannot answer: 30 by default, 0 for never. */
  patienceSeconds?: number;
  /** After so long a silence an event stream is opened anew: 40 by default. */
  silenceSeconds?: number;
}

export class Client {
  constructor(url?: string | URL, options?: ClientOptions);
  alive(options?: Options): Promise<boolean>;
  create(session?: NewSession, options?: CreateOptions): Promise<Session>;
  get(id: string, options?: Options): Promise<Session>;
  wait(id: string, options?: WaitOptions & { until?: "ready" | "ended" }): Promise<Session>;
  page(options?: ListOptions & { cursor?: string }): Promise<Page>;
  list(options?: ListOptions): AsyncGenerator<Session, void, void>;
  patch(
    id: string,
    change: { metadata?: Metadata; visibility?: Visibility; ttlSeconds?: number },
    options?: Options,
  ): Promise<Session>;
  files(id: string, options?: Options): Promise<{ id: string; revision: number; files: SourceFile[] }>;
  archive(id: string, options?: Options): Promise<{ revision: number; bytes: Uint8Array }>;
  edit(
    id: string,
    edit: { write?: Files; archive?: Archive; delete?: string[]; baseRevision?: number },
    options?: Options,
  ): Promise<Edited>;
  replaceFiles(
    id: string,
    content: { files?: Files; archive?: Archive; baseRevision?: number },
    options?: Options,
  ): Promise<Edited>;
  stop(id: string, options?: Options): Promise<Stopped>;
  delete(id: string, options?: Options): Promise<void>;
  postEvent(
    id: string,
    event: { type: string; data?: Json; t?: number | string },
    options?: Options & { once?: boolean },
  ): Promise<Posted>;
  events(id: string, options?: Options & { after?: string }): AsyncGenerator<PreviewEvent, void, void>;
  logs(id: string, options?: Options & { tail?: number }): Promise<string>;
  ticket(id: string, options?: Options): Promise<Ticket>;
  createLink(id: string, options?: Options & { ttlSeconds?: number }): Promise<{ url: string; expiresAt: string }>;
  revokeLinks(id: string, options?: Options): Promise<void>;
  createToken(id: string, options?: Options & { ttlSeconds?: number }): Promise<{ token: string; expiresAt: string }>;
  replicas(options?: Options): Promise<Replica[]>;
}

/** Root of what calls throw, besides the reason of a signal and a TypeError for misuse. */
export class GatewayError extends Error {}

/** The `code` of a problem document; there may be more. */
export type ErrorCode =
  | "bad_request"
  | "bad_session_id"
  | "bad_files"
  | "unsupported_project"
  | "unsupported_media_type"
  | "unauthorized"
  | "forbidden"
  | "target_refused"
  | "session_not_found"
  | "session_conflict"
  | "revision_conflict"
  | "fenced"
  | "session_ended"
  | "payload_too_large"
  | "idempotency_key_reused"
  | "limit_reached"
  | "overloaded"
  | "registry_unavailable"
  | "registry_not_acknowledged"
  | (string & {});

/** An RFC 9457 document, with what some codes add. */
export interface Problem {
  title?: string;
  status?: number;
  code?: ErrorCode;
  detail?: string;
  /** session_not_found, session_ended */
  sessionId?: string;
  /** session_not_found */
  waitedSeconds?: number;
  /** session_ended */
  state?: State;
  /** session_ended */
  reason?: string;
  /** revision_conflict */
  currentRevision?: number;
  /** limit_reached */
  limit?: "creates" | "sessions" | "files" | "bytes";
  [name: string]: unknown;
}

export class ApiError extends GatewayError {
  constructor(status: number, problem: Problem, retryAfter?: number | null);
  readonly status: number;
  readonly code: ErrorCode;
  readonly problem: Problem;
  /** Seconds, or null. */
  readonly retryAfter: number | null;
}

export class Unreachable extends GatewayError {}

export class PreviewEnded extends GatewayError {
  constructor(session: Session);
  readonly session: Session;
}

export class WaitTimeout extends GatewayError {
  constructor(session: Session, until: string, seconds: number);
  readonly session: Session;
}

/** Server-sent events from text as it comes. */
export class EventParser {
  feed(text: string): PreviewEvent[];
}
export function encodeFiles(files: Files): SourceFile[];
export function decodeFile(file: SourceFile): Uint8Array;
