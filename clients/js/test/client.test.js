/** The client's own part, against servers that do what a gateway does on a bad day: `node --test`. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { ApiError, Client, EventParser, GatewayError, Unreachable, decodeFile, encodeFiles } from "../index.js";

const STREAM = [
  ": connected\n\n",
  'id: 1-0\nevent: state\ndata: {"state":"ready"}\n\n: keep-alive\n\n',
  'id: 2-0\r\nevent: log\r\ndata: {"lines":\r\ndata: ["ä"]}\r\n\r\nevent: end\ndata: {}\n\n',
].join("");
const SESSION = { id: "some-id-1", state: "ready", reason: "" };

/** A server whose n-th request is answered by the n-th of `answers`, and all later ones by the last. */
async function serving(t, ...answers) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const { method, url, headers } = request;
    asked.push({ method, url, headers, body: Buffer.concat(parts).toString() });
    await answers[Math.min(asked.length, answers.length) - 1](response, request);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, asked };
}

const json = (status, body, headers = {}) => (response) => {
  response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify(body));
};
const refused = (status, code, headers) => json(status, { title: "No", detail: "why not", status, code }, headers);
const cutOff = (response) => response.destroy();
const silent = () => {};
const begun = (text) => (response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream" }).write(text);
};

/** An address at which nothing listens. */
async function nowhere() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return `http://127.0.0.1:${port}`;
}

async function collect(events) {
  const found = [];
  for await (const event of events) found.push(event);
  return found;
}

test("events are found however the text is cut", () => {
  for (const size of [1, 2, 3, 7, 1000]) {
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < STREAM.length; at += size) found.push(...parser.feed(STREAM.slice(at, at + size)));
    assert.deepEqual(found, [
      { id: "1-0", type: "state", data: { state: "ready" } },
      { id: "2-0", type: "log", data: { lines: ["ä"] } },
      { id: "", type: "end", data: {} },
    ]);
  }
});

test("files that are no text go as base64, and all come back as they were", () => {
  const large = Uint8Array.from({ length: 100_000 }, (_, at) => at % 256);
  const files = encodeFiles({ a: "ä", b: new Uint8Array([0xef, 0xbb, 0xbf, 65]), c: large, d: large.buffer });
  assert.deepEqual(files[0], { path: "a", content: "ä" });
  assert.deepEqual(decodeFile(files[1]), new Uint8Array([0xef, 0xbb, 0xbf, 65]));
  assert.equal(files[2].encoding, "base64");
  assert.deepEqual(decodeFile(files[2]), large);
  assert.deepEqual(files[3].content, files[2].content);
});

test("a token goes into the header, is asked for each call, and never into an address", async (t) => {
  const { url, asked } = await serving(t, json(200, SESSION));
  let number = 0;
  const client = new Client(url + "/", { token: async () => `secret-${number++}` });
  await client.get("some-id-1");
  await client.get("some-id-1");
  assert.deepEqual(asked.map((call) => call.headers.authorization), ["Bearer secret-0", "Bearer secret-1"]);
  assert.ok(asked.every((call) => call.url === "/api/v1/sessions/some-id-1"));
});

test("a create whose answer is lost is repeated under the same key", async (t) => {
  const { url, asked } = await serving(t, cutOff, refused(503, "registry_unavailable"), json(201, SESSION));
  const session = await new Client(url).create({ files: { a: "b" } });
  assert.equal(session.id, "some-id-1");
  assert.equal(asked.length, 3);
  assert.equal(new Set(asked.map((call) => call.headers["idempotency-key"])).size, 1);
  assert.match(asked[0].headers["idempotency-key"], /^[0-9a-f]{32}$/);
  assert.equal(new Set(asked.map((call) => call.body)).size, 1);
});

test("Retry-After is waited for", async (t) => {
  const { url } = await serving(t, refused(429, "limit_reached", { "Retry-After": "1" }), json(200, SESSION));
  const began = performance.now();
  await new Client(url).get("some-id-1");
  assert.ok(performance.now() - began >= 1000);
});

test("a Retry-After beyond one's patience is told at once", async (t) => {
  const { url, asked } = await serving(t, refused(429, "limit_reached", { "Retry-After": "40" }));
  await assert.rejects(new Client(url).get("some-id-1"), { code: "limit_reached", status: 429, retryAfter: 40 });
  assert.equal(asked.length, 1);
});

test("a refusal is an error with its code and its document, and is not tried again", async (t) => {
  const { url, asked } = await serving(t, json(404, { code: "session_not_found", detail: "none", waitedSeconds: 5 }));
  await assert.rejects(new Client(url).get("some-id-1"), (error) => {
    assert.ok(error instanceof ApiError && error instanceof GatewayError);
    assert.deepEqual([error.name, error.message, error.code], ["ApiError", "none", "session_not_found"]);
    assert.deepEqual([error.problem.waitedSeconds, error.retryAfter], [5, null]);
    return true;
  });
  assert.equal(asked.length, 1);
});

test("what is no gateway is said to be none, at once", async (t) => {
  const { url, asked } = await serving(t, (response) => response.end("<h1>hello</h1>"));
  await assert.rejects(new Client(url).get("some-id-1"), Unreachable);
  assert.equal(await new Client(url).alive(), false);
  assert.equal(asked.length, 2);
});

test("where nothing listens it is unreachable, with the cause, when patience is at its end", async () => {
  const client = new Client(await nowhere(), { patienceSeconds: 0.5 });
  const began = performance.now();
  await assert.rejects(client.get("some-id-1"), (error) => error instanceof Unreachable && error.cause !== undefined);
  assert.ok(performance.now() - began < 5000);
});

test("what may not be done twice is not repeated when its answer is lost", async (t) => {
  const { url, asked } = await serving(t, cutOff);
  const client = new Client(url);
  await assert.rejects(client.edit("some-id-1", { write: { a: "" }, baseRevision: 3 }), Unreachable);
  await assert.rejects(client.postEvent("some-id-1", { type: "a" }, { once: true }), Unreachable);
  assert.equal(asked.length, 2);
});

test("what was refused unread is repeated, also if it may not be done twice", async (t) => {
  const { url, asked } = await serving(t, refused(503, "overloaded"), json(201, { id: "1-0" }));
  await new Client(url).postEvent("some-id-1", { type: "a" }, { once: true });
  assert.equal(asked.length, 2);
});

test("an abort ends a call, a pause and a stream with the caller's reason", async (t) => {
  const { url } = await serving(t, silent);
  const reason = new Error("enough");
  const client = new Client(url);
  const away = new Client(await nowhere());
  for (const call of [
    (signal) => client.get("some-id-1", { signal }),
    (signal) => away.get("some-id-1", { signal }),
    (signal) => collect(client.events("some-id-1", { signal })),
  ]) {
    const controller = new AbortController();
    const ended = assert.rejects(call(controller.signal), (error) => error === reason);
    setTimeout(() => controller.abort(reason), 50);
    await ended;
    await assert.rejects(call(controller.signal), (error) => error === reason);
  }
});

test("a lost stream is resumed after the last event, and its end comes once", async (t) => {
  const { url, asked } = await serving(
    t,
    (response) => {
      begun('id: 1-0\nevent: log\ndata: {"lines":[]}\n\nid: 2')(response);
      setTimeout(() => response.destroy(), 20);
    },
    refused(503, "registry_unavailable"),
    (response) => {
      begun('id: 2-0\nevent: end\ndata: {"state":"stopped"}\n\n')(response);
      setTimeout(() => response.destroy(), 20);
    },
    (response) => response.end('event: end\ndata: {"state":"stopped"}\n\n'),
  );
  const found = await collect(new Client(url).events("some-id-1"));
  assert.deepEqual(found.map((event) => event.id), ["1-0", "2-0"]);
  assert.deepEqual(asked.map((call) => call.headers["last-event-id"]), ["0", "1-0", "1-0", "2-0"]);
});

test("a stream without its heartbeat is opened anew, one that is refused is an error", async (t) => {
  const { url, asked } = await serving(t, begun(": connected\n\n"), refused(410, "session_ended"));
  const client = new Client(url, { silenceSeconds: 0.1 });
  await assert.rejects(collect(client.events("some-id-1", { after: "7-0" })), { code: "session_ended" });
  assert.deepEqual(asked.map((call) => call.headers["last-event-id"]), ["7-0", "7-0"]);
});

test("a stream that was connected is looked for longer than one that never was", async (t) => {
  const never = new Client(await nowhere(), { patienceSeconds: 0 });
  await assert.rejects(collect(never.events("some-id-1")), Unreachable);
  const { url } = await serving(t, (response) => {
    begun(": connected\n\n")(response);
    setTimeout(() => response.destroy(), 20);
  }, cutOff, (response) => response.end('id: 1-0\nevent: end\ndata: {}\n\n'));
  const found = await collect(new Client(url, { patienceSeconds: 0 }).events("some-id-1"));
  assert.equal(found.length, 1);
});

test("who leaves a stream closes its connection", async (t) => {
  let closed;
  const gone = new Promise((resolve) => (closed = resolve));
  const { url } = await serving(t, (response, request) => {
    request.socket.on("close", closed);
    begun(STREAM)(response);
  });
  for await (const event of new Client(url).events("some-id-1")) {
    assert.equal(event.id, "1-0");
    break;
  }
  await gone;
});

test("time that the reader takes is no silence", async (t) => {
  const { url, asked } = await serving(t, (response) => {
    begun('id: 1-0\nevent: log\ndata: {}\n\n')(response);
    setTimeout(() => response.end('id: 2-0\nevent: end\ndata: {}\n\n'), 250);
  });
  for await (const event of new Client(url, { silenceSeconds: 0.1 }).events("some-id-1")) {
    if (event.id === "1-0") await new Promise((resolve) => setTimeout(resolve, 300));
  }
  assert.equal(asked.length, 1);
});

test("waiting ends with the session, its end, or a time-out", async (t) => {
  const state = (name) => json(200, { ...SESSION, state: name, reason: "no such module" });
  const { url, asked } = await serving(t, state("starting"), state("ready"), state("failed"), state("starting"));
  const client = new Client(url);
  assert.equal((await client.wait("some-id-1")).state, "ready");
  await assert.rejects(client.wait("some-id-1"), { name: "PreviewEnded", message: /failed: no such module/ });
  await assert.rejects(client.wait("some-id-1", { timeoutSeconds: 0 }), { name: "WaitTimeout" });
  assert.match(asked[0].url, /\?wait=ready&timeout=25\.000$/);
});
