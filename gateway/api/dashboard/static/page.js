/** The frame of the page: signed in or not, all well or not. Text only ever becomes text. */

const find = (id) => document.getElementById(id);

/** An element with a class and text or children. */
export function element(name, className, ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

/** A state, coloured. Only names that the API knows become classes. */
export function badge(state) {
  return element("span", /^[a-z]+$/.test(state) ? `state ${state}` : "state", state);
}

/** Show what is given, leave the rest as it is. */
export function show({ signedIn, canSignOut, trouble, refusal }) {
  if (signedIn !== undefined) {
    const wasOut = find("board").hidden && !signedIn && find("sign-in").hidden;
    find("board").hidden = !signedIn;
    find("sign-in").hidden = signedIn;
    if (wasOut) find("token").focus();
    if (!signedIn) find("pulse").textContent = "";
  }
  if (canSignOut !== undefined) find("sign-out").hidden = !canSignOut;
  if (refusal !== undefined) find("refusal").textContent = refusal;
  if (trouble !== undefined) {
    find("notice").hidden = !trouble;
    find("notice").textContent = trouble && `${trouble}. Trying again.`.replace("..", ".");
    find("board").classList.toggle("stale", Boolean(trouble));
    if (signedIn !== false) {
      find("pulse").className = trouble ? "pulse lost" : "pulse live";
      find("pulse").textContent = trouble ? "no answer" : "live";
    }
  }
}
