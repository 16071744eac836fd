// What the page draws: functions of the run and of what the user chose. All text is set as text.

const { html } = htmPreact;

const ROW = 26; // pixels, as in page.css
const WIDE = 1000; // units of a drawing's width
const MOST_PRINTED = 500; // rows of a list
const MOST_PIECES = 50; // threads of a block whose texts are shown at once

const ACTIVITIES = {
  writing: "writes",
  prompt: "up to the first token",
  tool: "tool",
  gate: "waits at the gate",
  waiting: "waits for threads",
};
const HEADLINES = [
  "critical path", "total tokens", "work / span", "peak context", "prefix hits", "threads",
  "wall clock, s",
];

const whole = new Intl.NumberFormat("en");
const number = (value) => whole.format(value);
const seconds = (value) => `${value.toFixed(value < 10 ? 3 : 1)} s`;
const named = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const spoken = (stage) => stage.replaceAll("_", " ");

// --- lists of any length -------------------------------------------------------------------------

/** Draws only those rows that can be seen; in print, the first ones. */
function Rows({ items, ui, name, draw, ...attributes }) {
  const printing = ui.printing;
  const top = ui.scrolled[name] ?? 0;
  const first = printing ? 0 : Math.max(0, Math.floor(top / ROW) - 8);
  const last = printing ? MOST_PRINTED : first + Math.ceil(window.innerHeight / ROW) + 16;
  const shown = items.slice(first, last);
  const height = (printing ? shown.length : items.length) * ROW;
  return html`
    <div class="rows" id=${name} tabindex="0" ...${attributes}
        onScroll=${(event) => change({ scrolled: { ...ui.scrolled, [name]: event.target.scrollTop } })}>
      <div class="all" role="presentation" style=${{ height }}>
        <div class="seen" role="presentation" style=${{ transform: `translateY(${first * ROW}px)` }}>
          ${shown.map((item, index) => draw(item, first + index))}
        </div>
      </div>
    </div>
    ${printing && items.length > last && html`<p>… and ${number(items.length - last)} more</p>`}`;
}

// --- the waterfall -------------------------------------------------------------------------------

/** The bars of a row, one outline for each activity however many there are. */
function Track({ row, run, unit }) {
  const end = run.end(unit);
  const drawn = {};
  const draw = (activity, from, to) => {
    const x = (WIDE * from) / end;
    const width = Math.max(2, (WIDE * (to - from)) / end);
    const [y, height] = activity in THIN ? [7, 6] : [3, 14];
    drawn[activity] = `${drawn[activity] ?? ""}M${x} ${y}h${width}v${height}h${-width}Z`;
  };
  if (run.running && row.started !== null) draw("thread", row.started, row.ended ?? run.now);
  for (const bar of row.bars[unit]) draw(bar.activity, bar.start, bar.end ?? run.now);
  return html`
    <svg class="track" viewBox="0 0 ${WIDE} 20" preserveAspectRatio="none" aria-hidden="true">
      ${Object.entries(drawn).map(([activity, d]) => html`<path class=${activity} d=${d} />`)}
    </svg>`;
}
const THIN = { thread: true, waiting: true };

function ThreadRow({ row, ui }) {
  const { run, unit, selected } = ui;
  const told = [
    row.id, row.outline, spoken(row.stage), named(row.tokens, "token"),
    row.critical ? "on the critical path" : "",
  ];
  return html`
    <div class="thread ${row.critical ? "critical" : ""}" role="treeitem" id="thread-${row.id}"
        key=${row.id} aria-label=${told.filter(Boolean).join(", ")} aria-level=${row.depth + 1}
        aria-setsize=${row.parent?.children.length ?? 1} aria-posinset=${row.place + 1}
        aria-selected=${row.id === selected} onClick=${() => select(row)}>
      <span class="label" style=${{ paddingLeft: `${Math.min(row.depth, 8) * 14}px` }}>
        <span class="mark ${row.stage}" title=${spoken(row.stage)}>${STAGES[row.stage]}</span>
        <span class="id">${row.id}</span>
        <span class="outline">${row.outline.slice(0, 120)}</span>
      </span>
      <${Track} row=${row} run=${run} unit=${unit} />
      <span class="count">${number(row.tokens)}</span>
    </div>`;
}

/** Round places on the time axis, but for its end, where a label has no room. */
function Ticks({ end, unit }) {
  const rough = end / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const places = Array.from({ length: Math.floor((0.92 * end) / step) + 1 }, (_, i) => i * step);
  const told = (at) => (unit === "seconds" ? `${+at.toPrecision(3)} s` : number(at));
  return html`
    <div class="ticks" aria-hidden="true">${places.map((at) => html`
      <span style=${{ left: `${(100 * at) / end}%` }}>${told(at)}</span>`)}</div>`;
}

function Axis({ ui }) {
  return html`
    <div class="axis" aria-hidden="true">
      <span>${named(ui.run.rows.length, "thread")}</span>
      <${Ticks} end=${ui.run.end(ui.unit)} unit=${ui.unit} />
      <span class="count">tokens</span>
    </div>`;
}

function Legend({ keys }) {
  return html`
    <ul class="legend">${Object.entries(keys).map(([name, told]) => html`
      <li><svg viewBox="0 0 10 10" aria-hidden="true"><path class=${name} d="M0 1h10v8H0Z" /></svg>
        ${told}</li>`)}
    </ul>`;
}

function Waterfall({ ui }) {
  const rows = ui.shown;
  const used = Object.entries(ACTIVITIES).filter(([activity]) => ui.activities.has(activity));
  const keys = Object.fromEntries(used);
  if (ui.run.record) keys.critical = "writes, on the critical path";
  return html`
    <section class="waterfall" aria-labelledby="waterfall-title">
      <h2 id="waterfall-title">Threads</h2>
      <${Tools} ui=${ui} />
      <${Axis} ui=${ui} />
      <${Rows} name="threads" items=${rows} ui=${ui} role="tree" aria-label="Threads"
          aria-activedescendant="thread-${ui.selected}"
          onKeyDown=${(event) => walk(event, rows)}
          draw=${(row) => html`<${ThreadRow} row=${row} ui=${ui} />`} />
      ${rows.length === 0 && html`<p class="none">No thread fits.</p>`}
      <${Legend} keys=${keys} />
    </section>`;
}

function Tools({ ui }) {
  const { run, shown, stages } = ui;
  const units = run.record ? run.record.units : ["seconds"];
  return html`
    <div class="tools" role="search">
      <input type="search" id="search" placeholder="Search  /" aria-label="Search in all threads"
        value=${ui.search} onInput=${(event) => filter({ search: event.target.value })} />
      <select aria-label="Status" value=${ui.stage}
          onChange=${(event) => filter({ stage: event.target.value })}>
        <option value="">every status</option>
        ${Object.keys(STAGES).filter((stage) => stages.has(stage)).map((stage) => html`
          <option value=${stage}>${spoken(stage)} (${number(stages.get(stage))})</option>`)}
      </select>
      <div class="choice" role="group" aria-label="Unit of the time axis">
        ${units.map((unit) => html`
          <button type="button" aria-pressed=${unit === ui.unit}
            onClick=${() => change({ unit })}>${unit}</button>`)}
      </div>
      <output class="found" aria-live="polite">${
        shown.length < run.rows.length ? `${number(shown.length)} of ${named(run.rows.length, "thread")}` : ""
      }</output>
    </div>`;
}

// --- one thread ----------------------------------------------------------------------------------

function Thread({ ui }) {
  const row = ui.run.byId.get(ui.selected) ?? ui.run.root;
  const record = ui.run.record;
  const facts = [
    ["status", spoken(row.stage)],
    ["tokens, with those below", number(row.tokens)],
    row.started !== null && ["started", seconds(row.started)],
    row.ended !== null && row.ended > row.started && ["took", seconds(row.ended - row.started)],
    row.reason && ["why", row.reason],
  ];
  return html`
    <section class="detail" aria-labelledby="thread-title" key=${row.id}>
      <h2 id="thread-title" tabindex="-1">
        <span class="mark ${row.stage}" aria-hidden="true">${STAGES[row.stage]}</span>
        <span> Thread ${row.id}</span>
        ${row.critical && html`<span class="badge">critical path</span>`}
      </h2>
      <${Facts} facts=${facts} />
      ${row.outline && html`<h3>Outline</h3><${Text} text=${row.outline} />`}
      ${row.parent === null && html`<h3>Question</h3><${Text} text=${ui.run.question} />`}
      ${row.steps.map((step, index) => html`<${Step} step=${step} ui=${ui} key=${index} />`)}
      ${row.parent !== null && row.conclusion && html`
        <h3>Conclusion</h3><${Text} text=${row.conclusion} />`}
      ${record
        ? html`<details open=${ui.printing}><summary>Transcript</summary>
            <${Text} text=${row.transcript} class="transcript" /></details>`
        : html`<h3>Text so far</h3><${Text} text=${row.written} class="transcript" />`}
    </section>`;
}

function Facts({ facts }) {
  return html`
    <dl class="facts">${facts.filter(Boolean).map(([name, value]) => html`
      <div><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>`;
}

function Text({ text, class: kind = "" }) {
  return html`<pre class=${kind} tabindex="0">${text}</pre>`;
}

const STEPS = {
  call: "Model call",
  summary: "Summary for the parent",
  tool: "Tool call",
  block: "Parallel block",
  malformed: "A split that could not be read",
  declined: "A split that was declined",
  undecided: "A policy failed",
  backtrack: "A path given up",
};

function Step({ step, ui }) {
  const facts = {
    call: callFacts, summary: callFacts, block: blockFacts,
    tool: () => [["call", step.call], step.failed && ["outcome", "failed"]],
    backtrack: () => [["tried", step.tried]],
  }[step.kind] ?? (() => [["why", step.why]]);
  return html`
    <section class="step ${step.kind}">
      <h3>${STEPS[step.kind]}</h3>
      <${Facts} facts=${facts(step)} />
      ${step.kind === "block"
        ? html`<${Join} step=${step} ui=${ui} />`
        : step.text && html`<${Text} text=${step.text} />`}
    </section>`;
}

function callFacts({ tokens, prompt, cached, waited, first_token: first }) {
  const share = prompt ? ` (${Math.round((100 * cached) / prompt)} %)` : "";
  return [
    ["wrote", named(tokens, "token")],
    ["read", named(prompt, "token")],
    cached !== null && ["from the prefix cache", `${number(cached)}${share}`],
    waited > 0.0005 && ["waited at the gate", seconds(waited)],
    first !== null && ["to the first token", seconds(first)],
  ];
}

function blockFacts({ threads, left_out: leftOut, policy }) {
  return [
    ["threads", number(threads.length)],
    policy !== "all" && ["join policy", policy],
    leftOut.length > 0 && ["left out", leftOut.join("; ")],
  ];
}

/** Before and after a join: what the threads wrote, and what their parent read of it. */
function Join({ step, ui }) {
  const rows = step.threads.map((index) => ui.run.rows[index]);
  step.written ??= rows.reduce((sum, row) => sum + row.transcript.length, 0);
  return html`
    <h4>The threads wrote ${named(step.written, "character")}</h4>
    <div class="pieces" tabindex="0" role="group" aria-label="What the threads wrote">
      ${rows.slice(0, MOST_PIECES).map((row) => html`
        <div class="piece" key=${row.id}>
          <button type="button" class="link" onClick=${() => select(row)}>${row.id}</button>
          <pre>${row.transcript}</pre>
        </div>`)}
      ${rows.length > MOST_PIECES && html`<p>… and ${number(rows.length - MOST_PIECES)} more</p>`}
    </div>
    <h4>The parent read ${named(step.text.length, "character")}</h4>
    <${Text} text=${step.text} class="joined" />`;
}

// --- contexts ------------------------------------------------------------------------------------

/** Where each model call of a row began and ended: its context's length over time. */
function calls(row, unit) {
  const last = new Map(row.bars[unit].map((bar) => [bar.step, bar]));
  return row.steps.flatMap((step, index) => {
    const bar = last.get(index);
    if (!bar || step.kind !== "call") return [];
    const from = bar.activity === "writing" ? bar.start : bar.end;
    return [{ from, to: bar.end, before: step.prompt, after: step.prompt + step.tokens, ...step }];
  });
}

const HIGH = 160;

function Contexts({ ui }) {
  const { run, unit } = ui;
  if (!run.record) return null;
  const end = run.end(unit);
  const peak = run.record.peak_context || 1;
  const x = (at) => ((WIDE * at) / end).toFixed(1);
  const y = (tokens) => (HIGH - (HIGH * tokens) / peak).toFixed(1);
  const line = (calls) => calls.map((call, index) =>
    `${index ? "L" : "M"}${x(call.from)} ${y(call.before)}L${x(call.to)} ${y(call.after)}`).join("");
  const all = (run.contexts ??= {})[unit] ??=
    run.rows.map((row) => line(calls(row, unit))).join("");
  const row = run.byId.get(ui.selected);
  const own = row ? calls(row, unit) : [];
  const known = own.filter((call) => call.cached !== null);
  const upTo = (part) => known.map((call) => `M${x(call.from)} ${HIGH}V${y(part(call))}`).join("");
  const keys = { other: "every thread", own: `thread ${row?.id}` };
  if (known.length) Object.assign(keys, { computed: "prompt, computed", cached: "prompt, from the prefix cache" });
  return html`
    <section aria-labelledby="contexts-title">
      <h2 id="contexts-title">Context length</h2>
      <figure class="contexts">
        <svg viewBox="0 0 ${WIDE} ${HIGH}" preserveAspectRatio="none" role="img"
            aria-label="Length of the contexts over time, at most ${named(peak, "token")}">
          <path class="other" d=${all} />
          <path class="computed" d=${upTo((call) => call.before)} />
          <path class="cached" d=${upTo((call) => call.cached)} />
          <path class="own" d=${line(own)} />
        </svg>
        <figcaption>peak ${named(peak, "token")}</figcaption>
        <${Ticks} end=${end} unit=${unit} />
      </figure>
      <${Legend} keys=${keys} />
    </section>`;
}

// --- decisions -----------------------------------------------------------------------------------

const DECISIONS = ["thread", "choice", "budget", "lanes", "threads", "tokens", "otherwise", "why"];

function Decisions({ ui }) {
  const { run } = ui;
  if (!run.record?.decisions.length) return null;
  const made = run.record.decisions;
  const cells = (decision) => DECISIONS.map((name) => html`
    <span role="cell" title=${name === "why" ? decision.why : undefined}>${
      name === "thread"
        ? html`<button type="button" class="link"
            onClick=${() => select(run.byId.get(decision.thread))}>${decision.thread}</button>`
        : decision[name] ?? "–"
    }</span>`);
  return html`
    <section aria-labelledby="decisions-title">
      <h2 id="decisions-title">Why it split, and why not</h2>
      <p class="note">Every decision: the threads and lanes that were free, what it added to the critical
        path, and by estimate what the other way would have added.</p>
      <div class="table" role="table" aria-labelledby="decisions-title" aria-rowcount=${made.length + 1}>
        <div class="head" role="row">${DECISIONS.map((name) => html`
          <span role="columnheader">${name}</span>`)}</div>
        <${Rows} name="decisions" items=${made} ui=${ui} role="rowgroup" aria-label="Decisions"
          draw=${(decision, index) => html`
            <div class="decision" role="row" key=${index} aria-rowindex=${index + 2}>${cells(decision)}</div>`} />
      </div>
    </section>`;
}

// --- the page ------------------------------------------------------------------------------------

function Measures({ run }) {
  if (!run.record) return null;
  const measures = new Map(run.record.metrics);
  const headlines = HEADLINES.filter((name) => measures.has(name));
  const others = [...measures].filter(([name]) => !headlines.includes(name));
  return html`
    <section class="measures" aria-label="Measures">
      <dl class="headlines">${headlines.map((name) => html`
        <div><dt>${name}</dt><dd>${measures.get(name)}</dd></div>`)}</dl>
      <details><summary>All measures</summary><${Facts} facts=${others} /></details>
    </section>`;
}

function Ask({ ui }) {
  const { live, run, asked } = ui;
  const busy = asked && run.running;
  return html`
    <form class="ask" onSubmit=${ask}>
      <label class="wide">Question
        <textarea name="question" rows="2" required defaultValue=${live.question}
          onKeyDown=${sendByEnter} /></label>
      <label>Threads
        <input name="threads" defaultValue=${live.threads} placeholder=${live.most} pattern="[0-9]{1,9}|auto"
          title="A number, or auto" /></label>
      <label>Strategy
        <select name="strategy">${live.strategies.map((name) => html`
          <option value=${name} selected=${name === live.strategy}>${name}</option>`)}</select></label>
      ${busy
        ? html`<button type="button" key="stop" onClick=${stop}>Stop</button>`
        : html`<button type="submit" key="ask" class="main">Ask</button>`}
    </form>
    ${ui.error && html`<p class="error" role="alert">${ui.error}</p>`}`;
}

function Page({ ui }) {
  const { run, live } = ui;
  const about = run.record
    ? [run.record.model, run.record.protocol, `merge ${run.record.merge}`, `budget ${run.record.budget}`, run.record.began]
    : [live?.model, ui.asked && run.running ? `${run.now.toFixed(1)} s` : ""];
  return html`
    <header>
      <div class="title">
        <h1>apr-agents</h1>
        <p>${about.filter(Boolean).join(" · ")}</p>
        <button type="button" class="theme" onClick=${switchTheme}>${isDark() ? "Light" : "Dark"}</button>
      </div>
      ${live && html`<${Ask} ui=${ui} />`}
      ${ui.asked && html`
        <div class="asked"><p class="question">${run.question}</p>
          <p class="answer" aria-live="polite"><span aria-hidden="true">→ </span>${
            run.answer ?? (run.running ? "…" : run.failure ?? "no answer")}</p></div>`}
    </header>
    ${ui.asked && html`
      <main>
        <${Measures} run=${run} />
        <div class="columns">
          <div><${Waterfall} ui=${ui} /><${Contexts} ui=${ui} /><${Decisions} ui=${ui} /></div>
          <${Thread} ui=${ui} />
        </div>
      </main>`}`;
}
