// The page's state, and what changes it: the user, and in a live page the server.

const given = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

let ui = {
  run: new Run(),
  live: given.live ?? null,
  asked: false, // whether there is a run
  error: "",
  unit: "seconds",
  selected: "0",
  search: "",
  stage: "",
  scrolled: {},
  printing: false,
};

/** The only way to change what is shown. */
function change(changes) {
  const before = ui;
  ui = { ...ui, ...changes };
  const kept = ["run", "unit", "search", "stage"].every((name) => ui[name] === before[name]);
  if (!kept || !ui.activities || "heard" in changes) Object.assign(ui, derived(ui));
  htmPreact.render(html`<${Page} ui=${ui} />`, document.getElementById("page"));
}

// --- what is shown -------------------------------------------------------------------------------

/** What takes a look at every thread: those that search and filter leave, and what there is. */
function derived({ run, unit, search, stage }) {
  const wanted = search.trim().toLowerCase();
  const shown = run.rows.filter((row) =>
    (!stage || row.stage === stage) && (!wanted || row.searched.includes(wanted)));
  const stages = new Map();
  const activities = new Set();
  for (const row of run.rows) {
    stages.set(row.stage, (stages.get(row.stage) ?? 0) + 1);
    for (const bar of row.bars[unit]) activities.add(bar.activity);
  }
  return { shown, stages, activities };
}

function filter(changes) {
  document.getElementById("threads")?.scrollTo(0, 0);
  change({ ...changes, scrolled: { ...ui.scrolled, threads: 0 } });
}

function select(row) {
  change({ selected: row.id });
}

const isDark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

function switchTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  change({});
}

// --- keys ----------------------------------------------------------------------------------------

/** Keys in the list of threads. */
function walk(event, rows) {
  const list = event.currentTarget;
  const at = rows.findIndex((row) => row.id === ui.selected);
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const row = rows[at];
  const to = {
    ArrowDown: () => rows[at + 1],
    ArrowUp: () => rows[Math.max(0, at - 1)],
    PageDown: () => rows[Math.min(rows.length - 1, at + page)],
    PageUp: () => rows[Math.max(0, at - page)],
    Home: () => rows[0],
    End: () => rows.at(-1),
    ArrowLeft: () => row?.parent,
    ArrowRight: () => row?.children[0],
  }[event.key];
  if (event.key === "Enter") {
    event.preventDefault();
    document.getElementById("thread-title").focus();
  } else if (to) {
    event.preventDefault();
    const next = to();
    if (next) select(next);
    bringIntoView(list, rows.indexOf(next));
  }
}

function bringIntoView(list, index) {
  if (index < 0) return;
  const top = index * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    document.getElementById("search")?.focus();
  } else if (event.key === "Escape" && ui.asked) {
    if (event.target.id === "search") filter({ search: "" });
    document.getElementById("threads").focus();
  }
});
addEventListener("beforeprint", () => change({ printing: true }));
addEventListener("afterprint", () => change({ printing: false }));
addEventListener("resize", () => change({}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => change({}));

// --- a live page ---------------------------------------------------------------------------------

async function post(path, body) {
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    change({ error: response.ok ? "" : (await response.json()).error });
  } catch {
    change({ error: "The server does not answer. Is it still running?" });
  }
}

function ask(event) {
  event.preventDefault();
  post("ask", Object.fromEntries(new FormData(event.target)));
}

function sendByEnter(event) {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
}

function stop() {
  post("stop", {});
}

/** Take messages. "asked" begins another run. */
function hear(messages) {
  let changes = { heard: messages.length };
  for (const message of messages) {
    if (message.type === "asked") {
      const anew = { selected: "0", search: "", stage: "", scrolled: {}, unit: "seconds" };
      changes = { ...changes, run: new Run(), asked: true, ...anew };
    }
    (changes.run ?? ui.run).hear(message);
  }
  const { record } = changes.run ?? ui.run;
  if (record && !record.units.includes(ui.unit)) changes.unit = record.units[0];
  change(changes);
}

/** Hear the server, and draw at most twenty times a second. */
function listen() {
  const source = new EventSource("events");
  let waiting = [];
  source.onmessage = ({ data }) => {
    if (waiting.length === 0) setTimeout(() => hear(waiting.splice(0)), 50);
    waiting = waiting.concat(JSON.parse(data));
  };
  source.onerror = () => change({ error: "The connection to the server was lost." });
  source.onopen = () => change({ error: "" });
}

if (ui.live) {
  change({});
  listen();
} else {
  hear([{ type: "asked", question: given.record.question }, given.record]);
}
performance.mark("interactive");
