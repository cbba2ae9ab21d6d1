/** One session: what it is, and its log as it is written. */

import { badge, element } from "./page.js";

const KEPT_LINES = 1000;
const find = (id) => document.getElementById(id);
/** Ends what follows the session that is shown. */
let leaving = new AbortController();

function facts({ owner, createdAt, expiresAt, endedAt, visibility, framework, target, generation, revision, metadata }) {
  const moment = (text) => (text ? new Date(text).toLocaleString() : "");
  return [
    ["Owner", owner],
    ["Created", moment(createdAt)],
    endedAt ? ["Ended", moment(endedAt)] : ["Expires", moment(expiresAt)],
    ["Visibility", visibility],
    target ? ["Target", target] : ["Framework", framework],
    ["Files", target ? "" : `revision ${revision}`],
    ["Generation", String(generation)],
    ["Metadata", Object.keys(metadata).length ? JSON.stringify(metadata, null, 2) : ""],
  ].filter(([, value]) => value);
}

function print(lines) {
  const log = find("log");
  log.append(...lines.slice(-KEPT_LINES).map((line) => `${line}\n`));
  while (log.childNodes.length > KEPT_LINES) log.firstChild.remove();
}

function showState(state, reason) {
  find("details-state").replaceChildren(badge(state));
  find("details-reason").hidden = !reason;
  find("details-reason").textContent = reason ?? "";
  find("details-reason").classList.toggle("calm", state !== "failed");
}

/** Show a session, and follow it until the dialog is closed. */
export async function openDetails(gateway, session) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  find("details-title").textContent = session.id;
  showState(session.state, session.reason);
  find("facts").replaceChildren(
    ...facts(session).flatMap(([name, value]) => [
      element("dt", "", name),
      element("dd", name === "Metadata" ? "code" : "", value),
    ]),
  );
  find("log").replaceChildren();
  find("following").textContent = "";
  if (!find("details").open) find("details").showModal();
  try {
    await follow(gateway, session.id, signal);
  } catch (error) {
    if (!signal.aborted) find("following").textContent = `cannot be followed: ${error.message}`;
  }
}

async function follow(gateway, id, signal) {
  for await (const { type, data } of gateway.events(id, { signal })) {
    if (type === "log") print(data.lines);
    else if (type === "state" || type === "end") showState(data.state, data.reason);
    find("following").textContent = type === "degraded" ? "interrupted, goes on by itself" : "live";
  }
  find("following").textContent = "complete";
}

find("close").addEventListener("click", () => find("details").close());
find("details").addEventListener("close", () => leaving.abort());
find("details").addEventListener("click", (event) => {
  if (event.target === find("details") && event.offsetX < 0) find("details").close(); // the backdrop
});
