/** What Node.js and a browser do alike with the client, against real replicas. */

function same(found, expected) {
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  if (left !== right) throw new Error(`${left} is not ${right}`);
}

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return error.code || error.name;
  }
  throw new Error("it was not refused");
}

/** Every call, now through replica A, now through B. */
export async function everyCall({ Client, ApiError, decodeFile, a, b, token, project, id }) {
  const [one, two] = [new Client(a, { token }), new Client(b, { token: () => token })];
  same([await one.alive(), (await two.replicas()).length >= 2], [true, true]);

  // Read, followed and written to before it is there.
  const early = two.get(id);
  const types = [];
  const followed = (async () => {
    for await (const event of two.events(id)) if (event.type === "event") types.push(event.data);
  })();
  const posted = two.postEvent(id, { type: "early", data: { n: [1, null] }, t: 1.5 });
  const created = await one.create({ id, ...project, metadata: { mark: id, n: 1 } });
  same([created.id, (await early).id, (await posted).late], [id, id, false]);
  same((await two.wait(id)).state, "ready");
  same((await two.patch(id, { metadata: { n: null, x: { y: 2 } } })).metadata, { mark: id, x: { y: 2 } });
  const listed = [];
  for await (const session of one.list({ metadata: { mark: id }, limit: 1 })) listed.push(session.id);
  same(listed, [id]);

  const bytes = Uint8Array.from({ length: 300 }, (_, at) => at % 256);
  const { revision } = await two.edit(id, { write: { "a.bin": bytes, "ä.txt": "ä" }, delete: [] });
  const files = await one.files(id);
  same(files.revision, revision);
  const found = files.files.find((file) => file.path === "a.bin");
  same([...decodeFile(found)], [...bytes]);
  same(await refusal(two.edit(id, { write: { x: "" }, baseRevision: revision - 1 })), "revision_conflict");
  const packed = await two.archive(id);
  same([packed.revision, packed.bytes[0], packed.bytes[1]], [revision, 0x1f, 0x8b]);
  await one.edit(id, { write: { gone: "soon" }, delete: ["a.bin"], baseRevision: revision });
  const replaced = await two.replaceFiles(id, { archive: packed.bytes });
  same((await one.files(id)).files.map((file) => file.path).includes("gone"), false);
  await one.edit(id, { archive: packed.bytes, delete: ["not-there"], baseRevision: replaced.revision });

  // The same key, the same session; from an archive, too.
  const key = { idempotencyKey: `key-${id}` };
  const made = { archive: packed.bytes, command: project.command, visibility: "private" };
  const hidden = await one.create(made, { ...key, wait: true });
  same((await two.create(made, key)).id, hidden.id);
  const link = await two.createLink(hidden.id, { ttlSeconds: 60 });
  same(link.url.startsWith(`${hidden.previewUrl.replace(a, b)}.preview/open?token=`), true);
  const reader = new Client(b, { token: (await one.createToken(hidden.id)).token });
  same((await reader.get(hidden.id)).visibility, "private");
  same(await refusal(reader.stop(hidden.id)), "forbidden");
  await two.revokeLinks(hidden.id);
  same(await refusal(reader.get(hidden.id)), "unauthorized");
  await one.delete(hidden.id);
  await two.delete(hidden.id);

  same(typeof (await two.logs(id, { tail: 5 })), "string");
  same((await one.stop(id)).alreadyStopped, false);
  same((await two.stop(id)).alreadyStopped, true);
  same((await two.wait(id, { until: "ended" })).state, "stopped");
  same(await refusal(two.wait(id)), "PreviewEnded");
  same(await refusal(one.patch(id, { ttlSeconds: 5 })), "session_ended");
  await followed;
  const posts = types.filter((data) => data.source === "client");
  same(posts.map((data) => [data.type, data.data]), [["early", { n: [1, null] }]]);
  same(await refusal(new Client(a, { token: "none-of-theirs" }).page()), "unauthorized");
  same((await two.get("no-such-id-1").catch((error) => error)) instanceof ApiError, true);
}

/** Report every event of a session until its end. */
export async function follow({ Client, url, token, id, report }) {
  for await (const event of new Client(url, { token }).events(id)) await report(event);
}
