/** The list of sessions, and that of replicas. */

import { badge, element } from "./page.js";

const find = (id) => document.getElementById(id);
const ENDED = ["stopped", "failed", "expired"];
const FILTERS = [
  ["all", "All", () => true],
  ["ready", "Ready", ({ state }) => state === "ready"],
  ["starting", "Starting", ({ state }) => state === "starting" || state === "registered"],
  ["sleeping", "Sleeping", ({ state }) => state === "sleeping"],
  ["ended", "Ended", ({ state }) => ENDED.includes(state) || state === "stopping"],
];
/** Rows by id: kept from one refresh to the next, so that focus and selection stay. */
const rows = new Map();

/** "5 s", "12 min", "3 h", "4 d". */
export function age(since, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - Date.parse(since)) / 1000));
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 48 * 3600 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

/** An address that a link may lead to; "" for any other. */
function webAddress(text) {
  try {
    const url = new URL(text);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : "";
  } catch {
    return "";
  }
}

function text(session) {
  return `${session.id} ${session.owner} ${JSON.stringify(session.metadata)} ${session.reason}`.toLowerCase();
}

/** Below the id: why it has ended, or what its owner has noted. */
function note({ reason, metadata }) {
  if (reason) return reason.split("\n", 1)[0];
  return Object.entries(metadata)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(", ");
}

function makeRow(handlers) {
  const row = element("div", "row");
  row.setAttribute("role", "row");
  const cells = ["", "what", "owner", "age", "actions"].map((name) => element("span", name));
  for (const cell of cells) cell.setAttribute("role", "cell");
  const visit = element("a", "button", "Open");
  visit.target = "_blank";
  visit.rel = "noopener noreferrer";
  const log = element("button", "", "Log");
  log.type = "button";
  cells[4].append(visit, log);
  row.append(...cells);
  const made = { row, cells, visit, session: null };
  log.addEventListener("click", () => handlers.open(made.session));
  visit.addEventListener("click", (event) => {
    if (made.session.visibility !== "private") return;
    event.preventDefault();
    handlers.visit(made.session);
  });
  return made;
}

function fill({ row, cells: [state, what, owner, since], visit }, session) {
  state.replaceChildren(badge(session.state));
  const id = element("span", "id", session.id);
  id.title = session.id;
  const below = (session.visibility === "private" ? "private. " : "") + note(session);
  what.replaceChildren(id, ...(below ? [element("span", "note", below)] : []));
  owner.textContent = session.owner;
  owner.title = session.owner;
  since.textContent = age(session.createdAt);
  since.title = session.createdAt;
  const address = webAddress(session.previewUrl);
  visit.hidden = !address || ENDED.includes(session.state);
  visit.href = address;
  visit.setAttribute("aria-label", `Open ${session.id}`);
  row.querySelector("button").setAttribute("aria-label", `Log of ${session.id}`);
}

/** Show the sessions of a board that its filter and its search leave. */
export function showSessions({ sessions, isCut, filter, search }, handlers) {
  const chosen = FILTERS.find(([name]) => name === filter);
  const shown = sessions.filter((session) => chosen[2](session) && (!search || text(session).includes(search)));
  showFilters(sessions, filter, handlers.choose);
  const wanted = shown.map((session) => {
    const made = rows.get(session.id) ?? makeRow(handlers);
    rows.set(session.id, made);
    // Compared as text: a row that stays as it is is not touched.
    const content = JSON.stringify(session);
    if (made.content !== content) fill(made, (made.session = session));
    else made.cells[3].textContent = age(session.createdAt);
    made.content = content;
    return made.row;
  });
  const place = find("rows");
  if (place.children.length !== wanted.length || wanted.some((row, at) => place.children[at] !== row)) {
    place.replaceChildren(...wanted);
  }
  const known = new Set(sessions.map((session) => session.id));
  for (const id of rows.keys()) if (!known.has(id)) rows.delete(id);
  find("table").hidden = !shown.length;
  showEmpty(shown.length === 0, sessions.length === 0);
  find("more").hidden = !isCut;
  find("more").textContent = `These are the newest ${sessions.length}; the API lists the others.`;
}

function showFilters(sessions, filter, choose) {
  const place = find("filters");
  if (!place.children.length) {
    for (const [name, label] of FILTERS) {
      const button = element("button", "", `${label} `, element("b", ""));
      button.type = "button";
      button.addEventListener("click", () => choose(name));
      place.append(button);
    }
  }
  FILTERS.forEach(([name, , fits], at) => {
    place.children[at].setAttribute("aria-pressed", String(name === filter));
    place.children[at].lastChild.textContent = String(sessions.filter(fits).length);
  });
}

function showEmpty(isEmpty, isNone) {
  find("empty").hidden = !isEmpty;
  if (isNone) {
    find("empty-title").textContent = "No sessions yet";
    find("empty-how").replaceChildren(
      "Show a folder with ",
      element("code", "", "preview-gateway up DIR"),
      ", or create a session through the API.",
    );
  } else {
    find("empty-title").textContent = "No session fits";
    find("empty-how").replaceChildren("Choose other states, or search for less.");
  }
}

/** Show the replicas with a lease, or why they are not shown. */
export function showReplicas({ replicas, why }) {
  const items = replicas.map(({ id, url }) =>
    element("li", "", element("span", "id", id), element("span", "note", url || "no address")),
  );
  if (!items.length) items.push(element("li", "lone", why || "No replica has a lease."));
  find("replicas").replaceChildren(...items);
}
