import { bytes, connect, count, getJSON, plan, RANK, rate, seconds, short, show, spark, stateOf } from "./common.js";
import { openPanel, refreshPanel } from "./panel.js";

const boxes = new Map([...document.querySelectorAll("[data-box]")].map((e) => [e.dataset.box, e]));
const pipes = [...document.querySelectorAll("[data-pipe]")];

// view is a snapshot arranged for looking things up by name.
export function arrange(s) {
  const by = (list) => new Map(list.map((x) => [x.name, x]));
  const view = { s, topics: by(s.topics), groups: by(s.groups), services: by(s.services), models: new Map(s.read_models.map((m) => [m.group, m])) };
  view.kafka = s.sources.kafka.age_seconds != null;
  view.postgres = s.sources.postgres.age_seconds != null;
  view.reads = (group, topic) => view.groups.get(group)?.topics.find((t) => t.topic === topic);
  // The topics of a rung or of the DLQ of a group.
  view.ladder = (group, kind, delay) => s.topics.filter((t) => t.kind === kind && t.group === group && (delay == null || t.name.endsWith("." + delay)));
  // What waits on retry topics: the lag of whoever reads them; nothing was ever written: nothing waits.
  view.waiting = (topics) => {
    let sum = 0;
    for (const t of topics) {
      const readers = s.groups.flatMap((g) => g.topics).filter((x) => x.topic === t.name && x.lag_messages != null);
      if (readers.length > 0) sum += Math.min(...readers.map((r) => r.lag_messages));
      else if (t.records > 0) return null;
    }
    return sum;
  };
  view.dead = (group) => {
    const own = view.services.get(group);
    if (own && own.dead_letters != null) return own.dead_letters;
    return null;
  };
  return view;
}

const text = (box, part = "[data-t]") => box.querySelector(part);

const draw = {
  service(box, name, v) {
    const r = v.services.get(name)?.outbox_rows_per_second;
    if (r == null) show(text(box), v.postgres ? "outbox –" : "not measured", "unknown");
    else show(text(box), `outbox ${rate(r)}`, stateOf(r));
  },
  topic(box, name, v) {
    const t = v.topics.get(name);
    if (!v.kafka) show(text(box), "not measured", "unknown");
    else if (!t) show(text(box), "does not exist", "empty");
    else if (t.records === 0) show(text(box), "no records yet", "empty");
    else show(text(box), `${rate(t.rate_per_second)} · ${short(t.records)} rec.`, t.rate_per_second ? "ok" : stateOf(t.rate_per_second));
  },
  relay(box, _, v) {
    const state = v.s.headline.relay;
    show(text(box), state, { streaming: "good", inactive: "bad", lost: "bad", "no slot": "empty" }[state] || "unknown");
    const wal = v.s.headline.slot_retained_wal_bytes;
    show(text(box, "[data-u]"), wal == null ? "" : bytes(wal));
  },
  group(box, name, v) {
    let worst = "UNKNOWN";
    for (const port of box.querySelectorAll(".port")) {
      const t = v.reads(name, port.dataset.port), figure = text(port);
      const verdict = t?.verdict ?? "UNKNOWN";
      if (RANK.indexOf(verdict) > RANK.indexOf(worst)) worst = verdict;
      port.setAttribute("class", "port v-" + verdict);
      if (!v.kafka) show(figure, "not measured", "unknown");
      else if (!t) show(figure, v.groups.has(name) ? "not read" : "no such group yet", "empty");
      else if (t.lag_messages === 0) show(figure, `${rate(t.rate_per_second)} · 0 s`, t.rate_per_second ? "ok" : stateOf(t.rate_per_second));
      else show(figure, `${rate(t.rate_per_second)} · ${seconds(t.lag_seconds)}`, RANK.indexOf(verdict) > 1 ? "bad" : "ok");
    }
    box.setAttribute("class", "box group v-" + worst);
    box.toggleAttribute("data-loud", RANK.indexOf(worst) > 1);
    show(text(box), v.groups.has(name) ? worst : "", "ok");
  },
  model(box, group, v) {
    const m = v.models.get(group);
    if (!m || m.oldest_unapplied_seconds == null) show(text(box), v.kafka ? "nothing applied yet" : "not measured", v.kafka ? "empty" : "unknown");
    else show(text(box), `oldest unapplied ${seconds(m.oldest_unapplied_seconds)}`, RANK.indexOf(m.verdict) > 1 ? "bad" : stateOf(m.oldest_unapplied_seconds));
  },
  retry(box, id, v) {
    const [group, delay] = id.split(":");
    const topics = v.ladder(group, "retry", delay);
    const n = topics.length ? v.waiting(topics) : null;
    show(text(box), short(n), stateOf(n));
    box.toggleAttribute("data-loud", n > 0);
  },
  dlq(box, group, v) {
    const n = v.dead(group);
    show(text(box), short(n), stateOf(n));
    box.toggleAttribute("data-loud", n > 0);
  },
};

// named gives a box the name that a screen reader speaks: what it is, then what is written in it.
function named(box) {
  const written = [...box.querySelectorAll("text")].map((t) => t.textContent.trim()).filter(Boolean).join(" ");
  box.setAttribute("aria-label", `${box.dataset.label}: ${written}`);
}

function drawPipe(p, v) {
  const [, kind, name] = p.dataset.pipe.split(":");
  let verdict = "OK", flow = null;
  if (kind === "read") {
    const t = v.reads(p.dataset.group, p.dataset.topic);
    verdict = t?.verdict ?? "UNKNOWN";
    flow = t?.rate_per_second;
  } else if (kind === "publish") {
    flow = v.topics.get(name)?.rate_per_second;
    if (flow == null) verdict = "UNKNOWN";
  } else if (kind === "outbox") {
    flow = v.services.get(name)?.outbox_rows_per_second;
    verdict = flow == null ? "UNKNOWN" : v.s.headline.relay === "streaming" ? "OK" : "STOPPED";
  } else if (kind === "model") {
    const g = v.groups.get(name)?.topics.filter((t) => t.kind === "event") ?? [];
    flow = g.reduce((sum, t) => sum + (t.rate_per_second ?? 0), 0);
    verdict = v.models.get(name)?.verdict ?? "UNKNOWN";
  } else {
    const n = v.waiting(v.ladder(name, "retry"));
    verdict = n > 0 ? "LAGGING" : "UNKNOWN";
  }
  p.setAttribute("class", "pipe v-" + verdict);
  const width = flow > 0 ? Math.min(9, 2 + 1.7 * Math.log10(1 + flow)) : 1.5;
  p.querySelector(".bed").style.strokeWidth = width + "px";
  if (flow > 0.05 && (verdict === "OK" || verdict === "LAGGING")) p.dataset.speed = flow > 50 ? 3 : flow > 5 ? 2 : 1;
  else delete p.dataset.speed;
}

const tile = (name) => document.querySelector(`[data-tile=${name}]`);

function setTile(name, value, state, note) {
  const t = tile(name);
  show(t.querySelector(".value"), value, state);
  show(t.querySelector(".note"), note);
  t.querySelector(".note").title = note;
}

function tiles(v) {
  const d = v.s.headline, pg = v.postgres;
  const open = v.s.sagas.reduce((sum, s) => sum + s.count, 0), stuck = v.s.sagas.find((s) => s.state === "STUCK")?.count ?? 0;
  setTile("orders", d.orders_per_second == null ? "–" : rate(d.orders_per_second), stuck > 0 ? "bad" : stateOf(d.orders_per_second),
    stuck > 0 ? `${count(stuck)} STUCK of ${count(open)} open` : v.s.sagas.length > 0 ? `${count(open)} open, none stuck` :
      d.orders_per_second == null ? (pg ? "no orders table" : "PostgreSQL not measured") : "placed");
  if (!d.consistency_known) setTile("consistency", "–", "unknown", "measured where the services run");
  else if (d.consistency_p99_seconds == null) setTile("consistency", "nothing finished", "empty", "in the last minute");
  else setTile("consistency", `${seconds(d.consistency_p50_seconds)} / ${seconds(d.consistency_p99_seconds)}`, "ok", "p50 / p99 of the last minute");
  const loud = RANK.indexOf(d.verdict) > 1;
  setTile("lag", d.lag_messages == null ? "–" : count(d.lag_messages), loud ? (RANK.indexOf(d.verdict) > 2 ? "bad" : "warn") : stateOf(d.lag_messages),
    d.lag_messages == null ? (v.kafka ? "no group has read yet" : "Kafka not measured") : `oldest ${seconds(d.lag_seconds)}${loud ? " · " + d.verdict : ""}`);
  const held = d.held_keys == null ? "" : ` · ${count(d.held_keys)} keys held`;
  setTile("dead", d.dead_letters == null ? "–" : count(d.dead_letters), d.dead_letters > 0 ? "bad" : stateOf(d.dead_letters),
    d.dead_letters == null ? (pg ? "no such tables" : "PostgreSQL not measured") : `${d.retry_waiting == null ? "–" : count(d.retry_waiting)} in retry${held}`);
  const slot = v.s.slots.find((s) => s.retained_wal_bytes === d.slot_retained_wal_bytes);
  setTile("wal", bytes(d.slot_retained_wal_bytes), slot && slot.wal_status !== "reserved" ? "warn" : stateOf(d.slot_retained_wal_bytes),
    !slot ? (pg ? "no replication slot" : "PostgreSQL not measured") : slot.safe_wal_bytes == null ? "retained, no limit set" : `retained, ${bytes(slot.safe_wal_bytes)} left`);
  setTile("relay", d.relay, { streaming: "good", inactive: "bad", lost: "bad", "no slot": "empty" }[d.relay] || "unknown",
    v.s.slots.length === 0 ? "" : v.s.slots.map((s) => `slot ${s.name}, ${s.wal_status}`).join("; "));
}

let view = null;

connect("", (s) => {
  view = arrange(s);
  for (const [id, box] of boxes) {
    const at = id.indexOf(":");
    draw[id.slice(0, at)](box, id.slice(at + 1), view);
    named(box);
  }
  for (const p of pipes) drawPipe(p, view);
  tiles(view);
  refreshPanel(view);
});

async function sparks() {
  try {
    const past = await getJSON("/console/api/history?headline=1");
    for (const svg of document.querySelectorAll("[data-spark]")) spark(svg, past.series[svg.dataset.spark]);
  } catch { /* the banner says that the server is away */ }
}
sparks();
setInterval(sparks, 5000);

// Selecting: a box by mouse or keyboard, or by the address, so that a box can be linked to.
const open = (id) => openPanel(id, boxes.get(id), () => view);
for (const [id, box] of boxes) {
  box.addEventListener("click", () => open(id));
  box.addEventListener("keydown", (e) => {
    if (e.key !== "Enter" && e.key !== " ") return;
    e.preventDefault();
    open(id);
  });
  // What belongs to a box stands out while the pointer or the focus is on it.
  const [kind, name] = id.split(":");
  const belongs = (p) => ({
    topic: p.dataset.topic === name, group: p.dataset.group === name, service: p.dataset.pipe === "pipe:outbox:" + name ||
      plan.routes.some((r) => r.Emitter === name && r.Topic === p.dataset.topic),
    model: p.dataset.group === name, retry: false, dlq: false, relay: false,
  })[kind];
  const light = (on) => {
    const lit = on ? pipes.filter(belongs) : [];
    document.getElementById("flow").classList.toggle("tracing", lit.length > 0);
    for (const p of pipes) p.toggleAttribute("data-lit", lit.includes(p));
  };
  box.addEventListener("pointerenter", () => light(true));
  box.addEventListener("pointerleave", () => light(false));
  box.addEventListener("focus", () => light(box.matches(":focus-visible")));
  box.addEventListener("blur", () => light(false));
}
for (const p of pipes) {
  const target = p.dataset.topic ? "topic:" + p.dataset.topic : "group:" + p.dataset.group;
  p.addEventListener("click", () => boxes.has(target) && open(target));
}
const fromAddress = () => { const id = decodeURIComponent(location.hash.slice(1)); if (boxes.has(id)) open(id); };
window.addEventListener("hashchange", fromAddress);
fromAddress();
