// A run as the page shows it: rows, one for each thread, parents first.

/** Marks of what a thread is at, in the order of the filter. */
const STAGES = {
  queued: "·", thinking: "●", waiting: "○",
  done: "✓", failed: "✗", cancelled: "✗", timed_out: "✗", over_budget: "✗",
};
const RUNNING = new Set(["queued", "thinking", "waiting"]);

class Row {
  constructor(id, parent) {
    this.id = id;
    this.parent = parent;
    this.depth = parent ? parent.depth + 1 : 0;
    this.place = parent ? parent.children.length : 0; // among its siblings
    this.children = [];
    this.outline = this.conclusion = this.written = "";
    this.stage = "queued";
    this.reason = null;
    this.tokens = 0;
    this.started = this.ended = null;
    this.critical = false;
    this.steps = []; // of the record; a running thread has none yet
    this.bars = { seconds: [], tokens: [] };
  }

  /** All that the thread wrote and all that its own threads returned to it. */
  get transcript() {
    const context = this.steps.filter((step) => step.kind !== "summary").map((step) => step.text);
    return this.steps.length ? context.join("") : this.written;
  }

  /** What a search looks through. */
  get searched() {
    return [this.id, this.outline, this.conclusion, this.reason ?? "", this.transcript]
      .join("\n").toLowerCase();
  }

  open(activity, at) {
    this.close(at);
    this.bars.seconds.push({ activity, start: at, end: null });
  }

  close(at) {
    for (const bar of this.bars.seconds) bar.end ??= at;
  }
}

class Run {
  constructor() {
    this.root = new Row("0", null);
    this.byId = new Map([["0", this.root]]);
    this.now = 0; // seconds since its start, as far as is known
    this.question = "";
    this.answer = null;
    this.record = null; // of a finished run
    this.failure = null;
    this.ordered = null;
  }

  get running() {
    return this.record === null && this.failure === null;
  }

  /** Every thread, in the order of the tree. */
  get rows() {
    if (this.ordered === null) {
      this.ordered = [];
      const below = (row) => {
        this.ordered.push(row);
        row.children.forEach(below);
      };
      below(this.root);
    }
    return this.ordered;
  }

  /** Take the next message: one that frames the run, or an event of it. */
  hear(message) {
    switch (message.type) {
      case "asked": this.question = message.question; break;
      case "failed": this.failure = message.why; this.stop(); break;
      case "record": this.take(message); break;
      default: this.happen(message);
    }
  }

  /** An event, see `apr_agents/trace/events.py`. */
  happen({ type, id, at, text = "", tokens = 0, ...more }) {
    const row = this.byId.get(id);
    if (!row) return;
    this.now = Math.max(this.now, at);
    switch (type) {
      case "started":
        row.outline = text;
        row.started = at;
        row.open("gate", at);
        break;
      case "admitted":
        row.stage = "thinking";
        row.open("prompt", at);
        break;
      case "token":
        row.stage = "thinking";
        row.written += text;
        row.tokens += tokens;
        if (row.bars.seconds.at(-1)?.activity !== "writing") row.open("writing", at);
        row.bars.seconds.at(-1).end = at;
        break;
      case "tool":
        row.stage = "waiting";
        if (row.bars.seconds.at(-1)?.activity !== "tool") row.open("tool", at);
        break;
      case "spawned":
        row.stage = "waiting";
        row.open("waiting", at);
        for (const child of more.threads) this.add(child, row);
        break;
      case "merged":
      case "returned":
        row.stage = "queued";
        row.open("gate", at);
        break;
      case "finished":
        Object.assign(row, { stage: more.status, reason: more.reason, conclusion: text, tokens });
        row.ended = at;
        row.close(at);
        if (row === this.root) this.answer = text;
    }
  }

  /** The record: all there is to know, in the place of what was heard so far. */
  take(record) {
    this.root = null;
    this.byId.clear();
    for (const { parent, status, ...thread } of record.threads) {
      const row = this.add(thread.id, parent === null ? null : this.byId.get(parent));
      Object.assign(row, thread, { stage: status });
    }
    for (const [unit, bars] of Object.entries(record.timelines)) {
      for (const [thread, step, activity, start, end] of bars) {
        this.rows[thread].bars[unit].push({ step, activity, start, end });
      }
    }
    Object.assign(this, { record, question: record.question, answer: record.answer });
  }

  stop() {
    for (const row of this.rows) {
      row.close(this.now);
      if (RUNNING.has(row.stage)) row.stage = "cancelled";
    }
  }

  add(id, parent) {
    const row = new Row(id, parent);
    this.byId.set(id, row);
    if (parent) parent.children.push(row);
    else this.root = row;
    this.ordered = null;
    return row;
  }

  /** Where the time axis ends. */
  end(unit) {
    if (this.record) return this.root.bars[unit][0].end || 1;
    return this.now || 1;
  }
}
