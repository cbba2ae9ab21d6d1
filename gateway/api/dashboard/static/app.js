/** The dashboard: asks the API of its own origin every few seconds, and shows what it says. */

import { ApiError, Client } from "./client/index.js";
import { openDetails } from "./details.js";
import { show } from "./page.js";
import { showReplicas, showSessions } from "./table.js";

const REFRESH_SECONDS = 3;
/** More than anybody reads; `search` and the API's filters find the others. */
const MOST_SESSIONS = 500;
const KEY = "preview-gateway:token";

let token = sessionStorage.getItem(KEY) ?? "";
// What does not answer is said at once, and asked again at the next turn.
const gateway = new Client("", { token: () => token, patienceSeconds: 0 });
const board = { sessions: [], isCut: false, filter: "all", search: "" };
let turn = 0;

async function newest() {
  const sessions = [];
  for await (const session of gateway.list({ limit: 100 })) {
    if (sessions.length === MOST_SESSIONS) return { sessions, isCut: true };
    sessions.push(session);
  }
  return { sessions, isCut: false };
}

/** The replicas, or why they cannot be shown. */
async function replicas() {
  try {
    return { replicas: await gateway.replicas(), why: "" };
  } catch (error) {
    if (error instanceof ApiError && error.status === 403) {
      return { replicas: [], why: "Replicas are shown to tokens of the scope admin." };
    }
    throw error;
  }
}

function render() {
  showSessions(board, {
    choose: (filter) => {
      board.filter = filter;
      render();
    },
    open: (session) => openDetails(gateway, session),
    visit,
  });
}

async function refresh() {
  const mine = ++turn;
  try {
    const [found, running] = await Promise.all([newest(), replicas()]);
    if (mine !== turn) return; // signed in or out meanwhile
    Object.assign(board, found);
    render();
    showReplicas(running);
    show({ signedIn: true, canSignOut: token !== "", trouble: "" });
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) refuse(error);
    else show({ trouble: error.message });
  }
}

function refuse(error) {
  let refusal = "";
  if (error.status === 403) refusal = "This token is good for one session only.";
  else if (token) refusal = "This token is not known to the gateway.";
  forget();
  show({ signedIn: false, canSignOut: false, trouble: "", refusal });
}

function forget() {
  token = "";
  sessionStorage.removeItem(KEY);
  Object.assign(board, { sessions: [], isCut: false });
  render();
}

/** Open a private preview: only a signed link shows it. */
async function visit(session) {
  try {
    const { url } = await gateway.createLink(session.id, { ttlSeconds: 3600 });
    window.open(url, "_blank", "noopener,noreferrer");
  } catch (error) {
    show({ trouble: error.message });
  }
}

document.querySelector("#sign-in form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.querySelector("#token");
  token = field.value.trim();
  field.value = "";
  sessionStorage.setItem(KEY, token);
  show({ refusal: "" });
  refresh();
});
document.querySelector("#sign-out").addEventListener("click", () => {
  turn++;
  forget();
  show({ signedIn: false, canSignOut: false, refusal: "" });
});
document.querySelector("#search").addEventListener("input", (event) => {
  board.search = event.target.value.trim().toLowerCase();
  render();
});

/** Refresh for as long as the page is looked at. */
async function run() {
  for (;;) {
    if (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    } else if (document.querySelector("#sign-in").hidden) {
      await refresh();
    }
    await new Promise((resolve) => setTimeout(resolve, REFRESH_SECONDS * 1000));
  }
}

run();
