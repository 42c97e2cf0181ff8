import { connect, count, getJSON, h, RANK, rate, seconds, show, spark, stateOf } from "./common.js";

const table = document.getElementById("lag");
const filter = document.getElementById("filter");
const onlyBehind = document.getElementById("only-behind");
const withRetries = document.getElementById("with-retries");
const rows = new Map(); // key to {row, cells}; a key is "group topic" or "group topic partition"
const expanded = new Set();
const SVG = "http://www.w3.org/2000/svg";
let snapshot = null, shape = "", selected = null, sparks = null;

const keyOf = (g, t, p) => [g.name, t.topic, ...(p ? [p.partition] : [])].join(" ");
const behind = (t) => RANK.indexOf(t.verdict) > 1;

// chosen lists what the filters let through, as [group, topics].
function chosen() {
  const wanted = filter.value.trim().toLowerCase();
  return snapshot.groups.map((g) => [g, g.topics.filter((t) =>
    (t.kind !== "retry" || withRetries.checked || behind(t)) && (!onlyBehind.checked || behind(t)) &&
    (g.name + " " + t.topic).toLowerCase().includes(wanted))]).filter(([, topics]) => topics.length > 0);
}

// The table's rows are made anew only when which rows there are has changed; otherwise the cells are
// rewritten in place, so that focus and selection stay.
function update() {
  if (!snapshot) return;
  const list = chosen();
  const fresh = list.map(([g, topics]) => g.name + ":" + topics.map((t) => t.topic + (expanded.has(keyOf(g, t)) ? t.partitions.length : "")).join()).join("|");
  if (fresh !== shape) {
    shape = fresh;
    build(list);
    drawSparks();
  }
  for (const [g, topics] of list) {
    const head = rows.get(g.name);
    if (head) show(head, g.error ? g.error : `${g.state || "no state"} · ${g.members === 1 ? "1 member" : g.members + " members"}`);
    for (const t of topics) {
      fill(keyOf(g, t), t);
      if (expanded.has(keyOf(g, t))) for (const p of t.partitions) fill(keyOf(g, t, p), p);
    }
  }
  const all = snapshot.groups.flatMap((g) => g.topics);
  show(document.getElementById("counts"), `${snapshot.groups.length} groups · ${all.filter(behind).length} of ${all.length} positions behind`);
  const empty = document.getElementById("lag-empty");
  empty.hidden = list.length > 0;
  table.hidden = list.length === 0;
  show(empty, snapshot.sources.kafka.age_seconds == null ? "Kafka is not measured yet." :
    snapshot.groups.length === 0 ? "No consumer group has committed an offset or joined yet." : "Nothing matches the filters.");
  title();
}

function build(list) {
  const focus = document.activeElement?.dataset?.focus;
  rows.clear();
  for (const body of table.tBodies.length ? [...table.tBodies] : []) body.remove();
  for (const [g, topics] of list) {
    const note = h("span", { class: "note" });
    rows.set(g.name, note);
    const body = h("tbody", {}, h("tr", { class: "group" }, h("th", { scope: "rowgroup", colspan: 9 }, g.name, note)));
    for (const t of topics) {
      body.append(line("topic", keyOf(g, t), t.topic, t));
      if (expanded.has(keyOf(g, t))) for (const p of t.partitions) body.append(line("partition", keyOf(g, t, p), "partition " + p.partition));
    }
    table.append(body);
  }
  if (focus) document.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

function line(kind, key, name, topic) {
  const cell = (c) => h("td", { class: c });
  const cells = { verdict: cell(), messages: cell("n"), seconds: cell("n"), rate: cell("n"), committed: cell("n"), end: cell("n"), member: cell("member"), spark: cell() };
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("class", "spark");
  chart.setAttribute("aria-hidden", "true");
  if (kind === "topic") cells.spark.append(chart);
  const expand = topic && h("button", {
    type: "button", class: "expand", "data-focus": "expand " + key, "aria-expanded": String(expanded.has(key)),
    "aria-label": `Partitions of ${key}`, onclick: () => { if (!expanded.delete(key)) expanded.add(key); update(); },
  }, "▶");
  const select = h("button", { type: "button", class: "select", "data-focus": "select " + key, title: "Show its last hour", onclick: () => choose(key) }, name);
  const row = h("tr", { class: kind, "aria-selected": String(key === selected) },
    h("td", {}, h("span", { class: "pick" }, expand, select)), ...Object.values(cells));
  rows.set(key, { row, cells, chart });
  return row;
}

function fill(key, x) {
  const entry = rows.get(key);
  if (!entry) return;
  const { cells } = entry;
  const verdict = cells.verdict.firstChild;
  if (!verdict || verdict.textContent !== x.verdict) cells.verdict.replaceChildren(h("span", { class: "word v-" + x.verdict }, x.verdict));
  show(cells.messages, count(x.lag_messages), stateOf(x.lag_messages));
  show(cells.seconds, seconds(x.lag_seconds), stateOf(x.lag_seconds));
  if (x.partitions) {
    const sum = (name) => x.partitions.reduce((s, p) => (p[name] == null ? s : (s ?? 0) + p[name]), null);
    const members = [...new Set(x.partitions.map((p) => p.member).filter(Boolean))];
    show(cells.rate, rate(x.rate_per_second), stateOf(x.rate_per_second));
    show(cells.committed, count(sum("committed_offset")), sum("committed_offset") == null ? "unknown" : "ok");
    show(cells.end, count(sum("end_offset")), sum("end_offset") == null ? "unknown" : "ok");
    show(cells.member, members.length === 0 ? "nobody" : members.length === 1 ? members[0] : members.length + " members", members.length ? "ok" : "empty");
  } else {
    show(cells.rate, "");
    show(cells.committed, x.committed_offset == null ? "none" : count(x.committed_offset), x.committed_offset == null ? "empty" : "ok");
    show(cells.end, count(x.end_offset), x.end_offset == null ? "unknown" : "ok");
    show(cells.member, x.member || "nobody", x.member ? "ok" : "empty");
  }
  cells.member.title = cells.member.textContent;
}

async function loadSparks() {
  try {
    sparks = (await getJSON("/console/api/sparks")).series;
    drawSparks();
  } catch { /* the banner says that the server is away */ }
}

function drawSparks() {
  if (!sparks) return;
  for (const [key, entry] of rows) if (entry.chart && sparks[key]) spark(entry.chart, sparks[key], 150, 20);
}

// The chart: seconds as an area on the left axis, records as a line on the right one.
let plot = null, plotted = null;

function choose(key) {
  if (selected && rows.get(selected)?.row) rows.get(selected).row.setAttribute("aria-selected", "false");
  selected = key;
  rows.get(key)?.row?.setAttribute("aria-selected", "true");
  history.replaceState(null, "", "#" + encodeURIComponent(key));
  title();
  loadChart();
}

function title() {
  if (!selected) return;
  const [group, topic, partition] = selected.split(" ");
  show(document.getElementById("chart-title"), `${group} on ${topic}${partition == null ? "" : ", partition " + partition}: the last hour`);
  const t = snapshot?.groups.find((g) => g.name === group)?.topics.find((t) => t.topic === topic);
  const x = partition == null ? t : t?.partitions.find((p) => String(p.partition) === partition);
  const now = x ? `${x.verdict} · ${count(x.lag_messages)} records behind · oldest ${seconds(x.lag_seconds)}` : "not measured now";
  show(document.getElementById("chart-now"), now);
  document.getElementById("chart").setAttribute("aria-label", `${selected}: ${now}`);
}

async function loadChart() {
  if (!selected) return;
  const [group, topic, partition] = selected.split(" ");
  const query = new URLSearchParams({ group, topic, ...(partition == null ? {} : { partition }) });
  const asked = selected;
  let past;
  try { past = await getJSON("/console/api/history?" + query); } catch { return; }
  if (asked !== selected) return;
  const data = [past.x, past.series.lag_seconds, past.series.lag_messages];
  const empty = document.getElementById("chart-empty");
  empty.hidden = data[1].some((v) => v != null) || data[2].some((v) => v != null);
  show(empty, "Nothing was measured in the last hour.");
  if (plot && plotted === selected) plot.setData(data);
  else makePlot(data);
  plotted = selected;
}

function makePlot(data) {
  const holder = document.getElementById("chart"), css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue("--" + name).trim();
  const axis = (more) => ({ stroke: colour("ink-3"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", ...more });
  const range = (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)];
  // A young process has measured a part of the hour: the axis begins there, but shows ten minutes at least.
  const measured = (u, low, high) => {
    const first = u.data[0].find((_, i) => u.data[1][i] != null || u.data[2][i] != null) ?? low;
    return low === u.data[0][0] && high === u.data[0].at(-1) ? [Math.max(low, Math.min(first, high - 600)), high] : [low, high];
  };
  plot?.destroy();
  plot = new uPlot({
    width: holder.clientWidth, height: 196, tzDate: (s) => new Date(s * 1000),
    cursor: { points: { size: 6 }, drag: { x: true, y: false } },
    scales: { x: { range: measured }, seconds: { range }, records: { range } },
    axes: [
      axis({ space: 90, incrs: [60, 120, 300, 600, 900], values: (_, at) => at.map((s) => new Date(s * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })) }),
      axis({ scale: "seconds", label: "oldest unread", size: 62, labelSize: 18, values: (_, at) => at.map((v) => (v === 0 ? "0" : seconds(v))) }),
      axis({ scale: "records", side: 1, label: "records behind", size: 62, labelSize: 18, grid: { show: false }, values: (_, at) => at.map((v) => (Number.isInteger(v) ? count(v) : "")) }),
    ],
    series: [
      { value: "{HH}:{mm}:{ss}" },
      { label: "Oldest unread", scale: "seconds", stroke: colour("accent"), width: 2, fill: colour("accent") + "22", points: { show: false }, value: (_, v) => seconds(v) },
      { label: "Records behind", scale: "records", stroke: colour("lagging"), width: 1.5, dash: [5, 3], points: { show: false }, value: (_, v) => count(v) },
    ],
  }, data, holder);
}

new ResizeObserver(() => plot?.setSize({ width: document.getElementById("chart").clientWidth, height: 196 })).observe(document.getElementById("chart"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot && makePlot(plot.data));

for (const control of [filter, onlyBehind, withRetries]) control.addEventListener("input", update);
document.getElementById("filters").addEventListener("submit", (e) => e.preventDefault());

connect("?partitions=1", (s) => {
  snapshot = s;
  if (!selected) {
    const asked = decodeURIComponent(location.hash.slice(1));
    const all = s.groups.flatMap((g) => g.topics.map((t) => [keyOf(g, t), t, g]));
    const worst = [...all].sort((a, b) => RANK.indexOf(b[1].verdict) - RANK.indexOf(a[1].verdict) || b[2].known - a[2].known)[0];
    const key = asked.includes(" ") ? asked : worst?.[0];
    if (key) { selected = key; loadChart(); loadSparks(); }
  }
  update();
});
setInterval(() => { loadSparks(); loadChart(); }, 5000);
