"use strict";
// Text is only ever set as text, never as markup: what an audit holds is not to be trusted.

const ROWS = 50;
const PHASES = [
  ["gate", (r) => r.seconds_gate],
  ["decoding", (r) => r.seconds_decoding],
  ["scoring", (r) => r.seconds_scoring],
  ["rest of the search", (r) => (r.seconds_search ?? 0) - (r.seconds_decoding ?? 0) - (r.seconds_scoring ?? 0)],
  ["final check", (r) => r.seconds_final],
  ["rest", (r) => (r.seconds ?? 0) - (r.seconds_gate ?? 0) - (r.seconds_search ?? 0) - (r.seconds_final ?? 0)],
];
const ORDERS = {
  newest: (a, b) => b.created - a.created,
  oldest: (a, b) => a.created - b.created,
  slowest: (a, b) => (b.seconds ?? 0) - (a.seconds ?? 0),
  worst: (a, b) => (b.gate_score ?? 0) - (a.gate_score ?? 0),
};
const SIGNS = { pass: "✓", swap: "⇄", fallback: "■" };

const find = (selector) => document.querySelector(selector);
const reviews = JSON.parse(find("#data").textContent);
for (const review of reviews) {
  review.candidates ??= [];
  review.flaws = [...new Set(review.candidates.flatMap((c) => c.flaws ?? []))];
}
const byLine = new Map(reviews.map((review) => [review.line, review]));
let found = reviews;
let turn = 0;

// ------------------------------------------------------------------ making elements

function put(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const make = (tag, attributes = {}, ...children) => put(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  put(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function table(label, headings, rows) {
  const head = make("tr", {}, ...headings.map((heading) => make("th", { scope: "col" }, heading)));
  const parts = [make("thead", {}, head), make("tbody", {}, ...rows)];
  return make("div", { class: "wide", role: "region", "aria-label": label, tabindex: 0 }, make("table", {}, ...parts));
}

// ------------------------------------------------------------------ how values are written

const number = (value, digits) => (value ?? 0).toFixed(digits);
const time = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 19).replace("T", " ");
const many = (n, one, more = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const action = (review) => `${SIGNS[review.action]} ${review.action}`;
const address = (review) => `#line-${review.line}`;

// ------------------------------------------------------------------ the table and its filters

function wanted(values) {
  const chosen = (name) => values.get(name).slice(1);
  const least = Number(values.get("seconds"));
  const id = values.get("id").trim();
  return (review) =>
    (!values.get("action") || review.action === chosen("action")) &&
    (!values.get("reason") || (review.reason ?? "") === chosen("reason")) &&
    (!values.get("steerer") || (review.steerer ?? "") === chosen("steerer")) &&
    (!values.get("flaw") || review.flaws.includes(chosen("flaw"))) &&
    (review.seconds ?? 0) >= least &&
    (review.id ?? "").startsWith(id);
}

function filter() {
  const values = new FormData(find("#filters"));
  found = reviews.filter(wanted(values)).sort(ORDERS[values.get("order")]);
  turn = 0;
  show();
}

function row(review) {
  const cell = (text, style = "text") => make("td", { class: style }, text);
  const [day, hour] = time(review.created).split(" ").map((part) => make("span", {}, part));
  const scored = review.candidates.length ? String(review.candidates.length) : "";
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, make("a", { href: address(review) }, day, " ", hour)),
    cell(action(review), `text ${review.action}`),
    cell(review.reason ?? "", "text loose"),
    cell(review.steerer ?? "", "text roomy"),
    cell(number(review.gate_score, 2), ""),
    cell(scored, "roomy"),
    cell(review.flaws.join(", "), "text loose roomy"),
    cell(number(review.seconds, 2), ""),
  );
}

function show() {
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  find("#reviews tbody").replaceChildren(...found.slice(turn * ROWS, (turn + 1) * ROWS).map(row));
  find("#found").textContent = `${found.length.toLocaleString("en")} of ${many(reviews.length, "review")}`;
  find("#where").textContent = `Page ${turn + 1} of ${pages}`;
  find("[name=before]").disabled = turn === 0;
  find("[name=after]").disabled = turn === pages - 1;
}

function leaf(by) {
  turn += by;
  show();
  find("#one-by-one").scrollIntoView();
}

// ------------------------------------------------------------------ one review

function fact(name, value) {
  return make("div", value.length > 24 ? { class: "long" } : {}, make("dt", {}, name), make("dd", {}, value));
}

function facts(review) {
  const known = {
    action: action(review),
    reason: review.reason,
    "mended by": review.steerer,
    "gate score": number(review.gate_score, 3),
    "score of what was shown": review.final_score == null ? "not checked" : number(review.final_score, 3),
    "score of the reasoning": review.reasoning_score == null ? "" : number(review.reasoning_score, 3),
    categories: Object.entries(review.gate_categories ?? {}).map(([name, score]) => `${name} ${number(score, 2)}`).join(", "),
    helpful: review.helpful ? "yes" : "no",
    effort: [
      many(review.generations ?? 0, "generation"),
      many(review.decode_passes ?? 0, "decode pass", "decode passes"),
      many(review.tokens ?? 0, "token"),
      many(review.moderation_calls ?? 0, "moderation call"),
    ].join(", "),
    id: review.id,
    seed: review.seed ?? 0,
    "line of the file": review.line,
  };
  const pairs = Object.entries(known).filter(([, value]) => value != null && value !== "");
  return make("dl", {}, ...pairs.map(([name, value]) => fact(name, String(value))));
}

function timings(review) {
  const parts = PHASES.map(([name, of], i) => ({ name, seconds: of(review) ?? 0, at: i + 1 })).filter((p) => p.seconds >= 0.00005);
  const whole = parts.reduce((sum, part) => sum + part.seconds, 0);
  if (!whole) return [];
  const bar = make("div", { class: "phases", "aria-hidden": "true" });
  const list = make("ul", { class: "legend" });
  for (const { name, seconds, at } of parts) {
    const share = seconds / whole;
    const piece = make("span", { class: `phase phase-${at}` }, share > 0.06 ? String(at) : "");
    piece.style.flexGrow = share;
    bar.append(piece);
    const told = ` ${name}: ${seconds.toFixed(3)} s, ${(100 * share).toFixed(0)} %`;
    list.append(make("li", {}, make("span", { class: `phase phase-${at}` }, String(at)), told));
  }
  return [make("h3", {}, `Time: ${number(review.seconds, 2)} s`), bar, list];
}

const kind = (review, i) => (i === review.chosen ? "swapped in" : review.candidates[i].passed ? "acceptable" : "rejected");

function mark(what, x, y) {
  if (what === "rejected" || what === "flagged answer") {
    return draw("path", { class: "rejected", d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8` });
  }
  const dot = draw("circle", { class: "acceptable", cx: x, cy: y, r: 4 });
  return what === "acceptable" ? dot : draw("g", {}, dot, draw("circle", { class: "chosen", cx: x, cy: y, r: 8 }));
}

function curve(review) {
  const [width, height, left, top, bottom] = [340, 190, 34, 12, 34];
  const scores = [review.gate_score ?? 0, ...review.candidates.map((c) => c.score ?? 0)];
  const x = (i) => left + 12 + (i * (width - left - 24)) / (scores.length - 1);
  const y = (score) => top + (1 - score) * (height - top - bottom);
  const text = (at, words, anchor = "middle") => draw("text", { x: at[0], y: at[1], "text-anchor": anchor }, words);
  const grid = [0, 0.5, 1].flatMap((score) => [
    draw("path", { class: "grid", d: `M${left} ${y(score)}H${width}` }),
    text([left - 6, y(score) + 4], String(score), "end"),
  ]);
  const line = draw("path", { class: "line", d: "M" + scores.map((score, i) => `${x(i)} ${y(score)}`).join("L") });
  const marks = scores.map((score, i) => {
    const what = i ? kind(review, i - 1) : "flagged answer";
    const named = draw("title", {}, i ? `candidate ${i}, ${what}: ${score.toFixed(3)}` : `${what}: ${score.toFixed(3)}`);
    return draw("g", {}, named, mark(what, x(i), y(score)));
  });
  const last = scores.length - 1;
  const ends = [text([x(0), height - 16], "answer"), text([x(last), height - 16], String(last)), text([(left + width) / 2, height - 2], "candidate")];
  const lowest = Math.min(...scores.slice(1)).toFixed(3);
  const label = `Scores: ${scores[0].toFixed(3)} of the flagged answer, then ${many(last, "candidate")}, the lowest ${lowest}. The table below has each of them.`;
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "curve" }, ...grid, line, ...marks, ...ends);
}

function key() {
  const entries = ["rejected", "acceptable", "swapped in"].map((what) => {
    const sign = draw("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, mark(what, 10, 10));
    return make("li", {}, sign, what === "rejected" ? "flagged or flawed" : what);
  });
  return make("ul", { class: "legend" }, ...entries);
}

function candidates(review) {
  if (!review.candidates.length) return [make("p", { class: "soft" }, "No search took place.")];
  const rows = review.candidates.map((c, i) =>
    make(
      "tr",
      i === review.chosen ? { class: "reference" } : {},
      make("th", { scope: "row" }, `${i + 1} ${c.origin ?? ""}`),
      make("td", { class: "text" }, c.steerer ?? ""),
      make("td", {}, number(c.score, 3)),
      make("td", { class: "text" }, kind(review, i)),
      make("td", { class: "text" }, (c.flaws ?? []).join(", ")),
      make("td", { class: "text" }, c.helpful ? "yes" : "no"),
      make("td", {}, c.log_likelihood == null ? "" : c.log_likelihood.toFixed(2)),
    ),
  );
  const headings = ["candidate", "steerer", "score", "what became of it", "flaws", "helpful", "log-likelihood"];
  const figure = make("figure", {}, make("figcaption", {}, "Scores: higher is worse"), curve(review), key());
  return [make("h3", {}, `Search: ${many(rows.length, "candidate")}`), figure, table("Candidates", headings, rows)];
}

function texts(review) {
  const written = Object.entries(review.texts ?? {}).map(([name, text]) => [name === "final" ? "what was shown" : `the ${name} under review`, text]);
  const tried = review.candidates.flatMap((c, i) => (c.text ? [[`candidate ${i + 1}, ${kind(review, i)}`, c.text]] : []));
  const all = [...written, ...tried];
  if (!all.length) return [make("p", { class: "soft" }, "This record holds no texts.")];
  const folded = all.map(([name, text]) => make("details", {}, make("summary", {}, name), make("blockquote", {}, text)));
  return [make("h3", {}, "Texts"), make("p", { class: "soft" }, "They are folded, since flagged texts may be unpleasant."), ...folded];
}

function neighbours(review) {
  const at = found.indexOf(review);
  const others = [["Previous review", found[at - 1]], ["Next review", at < 0 ? undefined : found[at + 1]]];
  return others.filter(([, other]) => other).map(([name, other]) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => location.replace(address(other)));
    return button;
  });
}

function open() {
  const review = byLine.get(Number(/^#line-(\d+)$/.exec(location.hash)?.[1]));
  const dialog = find("#review");
  if (!review) return dialog.close();
  find("#review-title").textContent = `Review of ${time(review.created)} UTC`;
  find("#review-body").replaceChildren(facts(review), ...timings(review), ...candidates(review), ...texts(review));
  find("#neighbours").replaceChildren(...neighbours(review));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  find("#review-title").focus();
}

function close() {
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
}

// ------------------------------------------------------------------ what a reader does

find("#filters").addEventListener("input", filter);
find("#filters").addEventListener("reset", () => setTimeout(filter));
find("#filters").addEventListener("submit", (event) => event.preventDefault());
find("[name=before]").addEventListener("click", () => leaf(-1));
find("[name=after]").addEventListener("click", () => leaf(1));
find("[name=close]").addEventListener("click", () => find("#review").close());
find("#review").addEventListener("close", close);
addEventListener("hashchange", open);
filter();
open();
