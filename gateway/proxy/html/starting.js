(() => {
  "use strict";
  const { id, events, state: firstState } = document.body.dataset;
  const [steps, status, clock, box, log] =
    [".steps", "#status", "#clock", ".log", ".log pre"].map((name) => document.querySelector(name));
  const KEPT_LINES = 200, CALM = 30000, SETTLE = 50, SILENCE = 10000, LONGEST = 16000;
  const STEP = { registered: 0, sleeping: 0, preparing: 1, installing: 1, starting: 2, ready: 3 };
  const SAYS = {
    registered: "Registered, about to start",
    sleeping: "Waking up",
    preparing: "Preparing files",
    installing: "Installing dependencies",
    starting: "Starting the dev server",
    ready: "Opening the preview",
  };

  // What outlives a reload: when this start began, and how often we have reloaded of late.
  const key = "preview-gateway:" + id;
  let memory = {};
  try { memory = JSON.parse(sessionStorage.getItem(key)) || {}; } catch { /* storage is off */ }
  const remember = () => {
    memory.seen = Date.now();
    try { sessionStorage.setItem(key, JSON.stringify(memory)); } catch { /* storage is off */ }
  };
  if (!(Date.now() - memory.seen < 5000)) memory.began = Date.now();

  // The first reload is immediate; if it leads here again, the next ones back off: 1, 2, 4 ... s.
  let leaving = 0;
  const reload = (least) => {
    if (leaving) return;
    if (!(Date.now() - memory.left < CALM)) memory.reloads = 0;
    const backOff = memory.reloads ? Math.min(LONGEST, 500 * 2 ** memory.reloads) : 0;
    leaving = setTimeout(() => {
      memory.reloads += 1;
      memory.left = Date.now();
      remember();
      location.reload();
    }, Math.max(least, backOff));
  };

  const show = (what, detail) => {
    const step = STEP[what] ?? -1;
    if (step >= 0) [...steps.children].forEach((item, index) => {
      item.className = index < step ? "done" : index === step ? "now" : "";
      if (index === step) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    });
    status.textContent = (SAYS[what] || "This preview is " + what) + (detail ? ": " + detail : "");
  };

  const print = (lines) => {
    const following = box.scrollTop > -40; // in a reversed column 0 is the bottom
    log.append(...lines.slice(-KEPT_LINES).map((line) => line + "\n"));
    while (log.childNodes.length > KEPT_LINES) log.firstChild.remove();
    if (following) box.scrollTop = 0;
  };

  const tick = () => {
    clock.textContent = Math.round((Date.now() - memory.began) / 1000) + " s";
    remember();
  };
  tick();
  setInterval(tick, 1000);
  show(firstState === "starting" ? "preparing" : firstState);
  // Out of the back/forward cache comes a moment long gone.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  const source = new EventSource(events);
  const patience = setTimeout(reload, SILENCE, 0);
  source.onopen = () => clearTimeout(patience);
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) reload(1000); };
  const on = (type, act) => source.addEventListener(type, (event) => {
    clearTimeout(patience);
    try { act(JSON.parse(event.data)); } catch (error) { console.warn(type, error); }
  });

  // The stream may open with history, in which the session was ready or ended before: what counts
  // is the last state of a burst, so act when it has settled.
  let settled = 0;
  const enter = (state, reason) => {
    clearTimeout(settled);
    show(state === "starting" ? "preparing" : state, reason);
    if (state === "ready" || !(state in STEP)) settled = setTimeout(reload, SETTLE, 0);
  };
  on("state", ({ state, reason }) => enter(state, reason));
  on("end", ({ state, reason }) => { source.close(); enter(state, reason); });
  on("event", ({ type, phase, detail }) => { if (type === "phase") show(phase, detail); });
  on("log", ({ lines }) => print(lines));
})();
