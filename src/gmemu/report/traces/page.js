"use strict";
// Panes are built from the traces in the document; every text goes in as text, never as markup.

const traces = JSON.parse(document.getElementById("traces").textContent);
const panes = [];
let current = 0;

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name === "task") made.style.setProperty("--task", `var(--t${value % 6})`);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const unique = (list) => [...new Set(list)];
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const find = (world, name) => world.pages.find((page) => page.name === name);
const before = (trace, n) => (n > 0 ? trace.steps[n - 1].after : trace.before);

function short(step) {
  const shared = step.kind.endsWith("shared") ? " (shared)" : "";
  if (step.domain === "lock" && step.kind.startsWith("acquire")) return `lock ${step.object}${shared}`;
  if (step.domain === "lock" && step.kind.startsWith("release")) return `unlock ${step.object}${shared}`;
  return step.event || step.kind;
}

function pageMarks(page) {
  if (!page || page.pfn < 0) return "";
  return (page.ptes.length ? "H" : "") + (page.sptes.length ? "G" : "") + (page.tlbs.length ? "T" : "") + " " + references(page);
}

// A pin counts 1024 in a folio's reference count; next to single references it's shown as such.
function references(page) {
  const pins = Math.floor(page.refs / 1024);
  return pins ? `${page.refs % 1024}+${pins}p` : String(page.refs);
}

function pageFacts(page) {
  if (!page) return [["", "not there"]];
  const facts = [["attribute", page.attribute || "none"]];
  if (page.pfn < 0) return [...facts, ["memory", "none"]];
  facts.push(["memory", `pfn 0x${page.pfn.toString(16)}`]);
  facts.push(["host PTEs", page.ptes.join(", ") || "none"]);
  facts.push(["guest PTEs", page.sptes.join(", ") || "none"]);
  if (page.tlbs.length) facts.push(["TLBs", page.tlbs.join(", ")]);
  facts.push(["references", page.refs + (page.holders.length ? `: ${page.holders.join(", ")}` : "")]);
  if (page.owner) facts.push(["owner", page.owner]);
  return facts;
}

class Pane {
  constructor(trace, index) {
    this.trace = trace;
    this.index = index;
    this.selected = 0;
    const worlds = [trace.before, ...trace.steps.map((step) => step.after)];
    this.locks = unique(worlds.flatMap((world) => world.locks.map((lock) => lock.name)));
    this.pages = unique(worlds.flatMap((world) => world.pages.map((page) => page.name)));
    this.rows = [];
    this.detail = el("aside", { "aria-live": "polite" });
    this.scroll = el("div", { class: "scroll", tabindex: "0" }, this.table());
    this.root = el("section", { class: "pane", "aria-label": trace.title }, this.header(), this.scroll, this.detail);
    this.root.addEventListener("mousedown", () => setCurrent(this.index));
  }

  header() {
    const { trace } = this;
    return el("header", {},
      el("h1", {}, trace.title, el("small", {}, `${trace.steps.length} steps`)),
      el("p", { class: `verdict ${trace.kind ? "bad" : "good"}` }, trace.verdict),
      el("span", { class: "token" }, `gmemu replay '${trace.token}'`));
  }

  table() {
    const { trace } = this;
    const head = el("tr", {}, el("th", { class: "nr" }, "step"),
      ...trace.tasks.map((name, task) => el("th", { class: "lane", task }, name)),
      ...this.locks.map((name) => el("th", { class: "lock", title: name }, el("div", {}, name))),
      ...this.pages.map((name) => el("th", { class: "page", title: name }, el("div", {}, name))));
    const body = el("tbody");
    trace.steps.forEach((step, n) => body.append(this.row(step, n)));
    for (const waiting of trace.waiting) body.append(this.waitingRow(waiting));
    const width = 2.6 + 15 * trace.tasks.length + 1.25 * this.locks.length + 3.6 * this.pages.length;
    return el("table", { class: "time", style: `min-width: ${width}rem` }, el("thead", {}, head), body);
  }

  row(taken, n) {
    const { trace } = this;
    const switched = n > 0 && trace.steps[n - 1].task !== taken.task;
    const kind = taken.kind === "write" ? "changes" : taken.domain === "lock" ? "takes" : "looks";
    const row = el("tr", { class: switched ? "switch" : "", "data-step": n }, el("td", { class: "nr" }, String(n)));
    trace.tasks.forEach((_, task) => {
      const runs = task === taken.task;
      const text = runs ? el("span", { class: kind, title: `${taken.says}: ${taken.event}` }, short(taken)) : null;
      const fails = runs && taken.rules.length ? el("span", { class: "fails" }, ` ${taken.rules.join(", ")}`) : null;
      row.append(el("td", { class: `lane${runs ? " runs" : ""}`, task }, text, fails));
    });
    this.state(row, before(trace, n), taken.after);
    row.addEventListener("click", () => step(this, n));
    this.rows.push(row);
    return row;
  }

  waitingRow(waiting) {
    const { trace } = this;
    const row = el("tr", { class: "switch" }, el("td", { class: "nr" }, ""));
    trace.tasks.forEach((_, task) => {
      const waits = task === waiting.task;
      row.append(el("td", { class: `lane${waits ? " waits" : ""}`, task }, waits ? `waits to ${waiting.kind} ${waiting.object}` : ""));
    });
    const end = before(trace, trace.steps.length);
    this.state(row, end, end);
    return row;
  }

  state(row, old, now) {
    for (const name of this.locks) {
      const lock = now.locks.find((found) => found.name === name);
      const bars = lock ? lock.holders.map(([task, mode]) => el("i", { class: mode, task })) : [];
      const title = lock ? `${name}: ${lock.holders.map(([task, mode]) => `${this.trace.tasks[task]} (${mode})`).join(", ")}` : "";
      row.append(el("td", { class: `lock${lock && lock.waiters.length ? " wanted" : ""}`, title }, el("span", {}, ...bars)));
    }
    for (const name of this.pages) {
      const page = find(now, name);
      const changed = !same(page, find(old, name));
      const kind = page && page.pfn >= 0 ? page.attribute : "";
      row.append(el("td", { class: `page ${kind}${changed ? " changed" : ""}` }, pageMarks(page)));
    }
  }

  select(n) {
    const last = this.trace.steps.length - 1;
    this.selected = Math.max(0, Math.min(last, n));
    this.rows.forEach((row, at) => row.classList.toggle("selected", at === this.selected));
    const row = this.rows[this.selected];
    if (!row) return;
    const head = this.scroll.querySelector("thead").offsetHeight;
    if (row.offsetTop - head < this.scroll.scrollTop) this.scroll.scrollTop = row.offsetTop - head - 24;
    const bottom = row.offsetTop + row.offsetHeight;
    if (bottom > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = bottom - this.scroll.clientHeight + 24;
    this.explain(this.trace.steps[this.selected]);
  }

  switchFrom(direction) {
    const { steps } = this.trace;
    let n = this.selected + direction;
    while (n > 0 && n < steps.length && steps[n].task === steps[n - 1].task) n += direction;
    return n;
  }

  explain(step) {
    const { trace } = this;
    const old = before(trace, step.number);
    const parts = [
      el("h2", {}, `${step.number}  ${trace.tasks[step.task]}: ${step.event || step.kind}`),
      el("p", {}, el("code", {}, step.says || "task begins")),
      ...step.rules.map((rule) => el("p", { class: "fails" }, "fails by rule ", el("code", {}, rule))),
    ];
    if (step.changes.length) {
      parts.push(el("h3", {}, "Changes"), el("ul", {}, ...step.changes.map((text) => el("li", { class: "changed" }, text))));
    }
    parts.push(el("h3", {}, "Locks"), this.lockList(step.after));
    for (const name of this.pages) {
      parts.push(el("h3", { class: "name" }, name), this.pageTable(find(old, name), find(step.after, name)));
    }
    const frames = [...step.stack].reverse().map((frame) => el("li", {}, el("code", {}, frame.kernel || frame.function), " ",
      el("span", { class: "file" }, `${frame.kernel ? `${frame.function}, ` : ""}${frame.file}:${frame.line}`)));
    if (frames.length) parts.push(el("h3", {}, "Stack"), el("ol", {}, ...frames));
    this.detail.replaceChildren(...parts);
    this.detail.scrollTop = 0;
  }

  lockList(world) {
    if (!world.locks.length) return el("p", {}, "none is held");
    const name = (task) => this.trace.tasks[task];
    return el("ul", {}, ...world.locks.map((lock) => el("li", {}, el("code", {}, lock.name), ": ",
      lock.holders.map(([task, mode]) => name(task) + (mode === "shared" ? " (shared)" : "")).join(", ") || "nobody",
      lock.waiters.length ? `; ${lock.waiters.map(name).join(", ")} waits` : "")));
  }

  pageTable(old, now) {
    const were = Object.fromEntries(pageFacts(old));
    const table = el("table");
    for (const [what, is] of pageFacts(now)) {
      const was = were[what] ?? "none";
      const text = was === is ? is : `${was} \u2192 ${is}`;
      table.append(el("tr", { class: was === is ? "" : "changed" }, el("th", {}, what), el("td", {}, text)));
    }
    return table;
  }
}

function setCurrent(index) {
  current = (index + panes.length) % panes.length;
  panes.forEach((pane, at) => pane.root.classList.toggle("current", at === current && panes.length > 1));
}

// Traces go together, each to the step that has the same number, until "s" parts them.
let together = true;

function step(pane, n) {
  pane.select(n);
  if (together) panes.filter((other) => other !== pane).forEach((other) => other.select(pane.selected));
}

const down = (pane) => step(pane, pane.selected + 1);
const up = (pane) => step(pane, pane.selected - 1);
const keys = {
  ArrowDown: down, j: down, ArrowUp: up, k: up,
  PageDown: (pane) => step(pane, pane.selected + 15), PageUp: (pane) => step(pane, pane.selected - 15),
  Home: (pane) => step(pane, 0), End: (pane) => step(pane, pane.trace.steps.length - 1),
  "]": (pane) => step(pane, pane.switchFrom(1)), "[": (pane) => step(pane, pane.switchFrom(-1)),
  ArrowRight: () => setCurrent(current + 1), ArrowLeft: () => setCurrent(current - 1),
  s: () => { together = !together; },
};

document.addEventListener("keydown", (pressed) => {
  const act = keys[pressed.key];
  if (!act || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
  pressed.preventDefault();
  act(panes[current]);
});

const main = document.getElementById("panes");
traces.forEach((trace, index) => panes.push(new Pane(trace, index)));
main.classList.toggle("several", panes.length > 1);
main.append(...panes.map((pane) => pane.root));
setCurrent(0);
panes.forEach((pane) => pane.select(pane.trace.kind && !pane.trace.waiting.length ? pane.trace.steps.length - 1 : 0));
panes[0].select(0);
