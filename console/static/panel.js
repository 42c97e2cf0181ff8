// The details of one box: live facts, which follow the stream, and the topic's youngest records, which
// are asked for and stand still while one of them is open.
import { bytes, count, EXPLAIN, getJSON, h, plan, RANK, rate, seconds } from "./common.js";

const panel = document.getElementById("panel");
const live = document.getElementById("panel-live");
const records = document.getElementById("panel-records");
let current = null; // {id, box, topics}
let timer = null;

const KIND = { service: "Service", topic: "Topic", group: "Consumer group", model: "Read model", relay: "Relay", retry: "Retry rung", dlq: "Dead letters" };

export function openPanel(id, box, view) {
  if (current) current.box.removeAttribute("aria-expanded");
  const at = id.indexOf(":");
  current = { id, kind: id.slice(0, at), name: id.slice(at + 1), box, view };
  box.setAttribute("aria-expanded", "true");
  document.getElementById("panel-kind").textContent = KIND[current.kind];
  document.getElementById("panel-title").textContent = title(current);
  panel.hidden = false;
  live.replaceChildren();
  refreshPanel(view());
  startRecords();
  document.getElementById("panel-title").focus();
  history.replaceState(null, "", "#" + id);
}

function close() {
  if (!current) return;
  current.box.removeAttribute("aria-expanded");
  current.box.focus();
  current = null;
  clearInterval(timer);
  panel.hidden = true;
  history.replaceState(null, "", location.pathname);
}
document.getElementById("panel-close").addEventListener("click", close);
document.addEventListener("keydown", (e) => { if (e.key === "Escape") close(); });

function title({ kind, name }) {
  if (kind === "retry") return name.replace(":", " after ");
  if (kind === "model") return plan.read_models[name];
  if (kind === "relay") return "WAL to Kafka";
  return name;
}

// word writes a verdict so that its colour is not all that says it.
export const word = (verdict) => h("span", { class: "word v-" + verdict }, verdict);

function table(caption, head, rows, empty) {
  if (rows.length === 0) return h("p", { class: "note" }, empty);
  const cell = (c) => h("td", { class: c.n ? "n" : null, "data-state": c.state || null }, c.text ?? c);
  return h("table", {}, h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, ...head.map((t) => h("th", { scope: "col", class: t.startsWith("#") ? "n" : null }, t.replace("#", ""))))),
    h("tbody", {}, ...rows.map((r) => h("tr", {}, ...r.map(cell)))));
}

const n = (value, write = count) => ({ n: true, text: write(value), state: value == null ? "unknown" : value === 0 ? "zero" : "ok" });
const facts = (...pairs) => h("dl", { class: "facts" }, ...pairs.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
const types = (list) => h("p", {}, list.map((r) => r.Type).join(", ") || "none");
const lagRows = (topics) => topics.map((t) => [t.topic, word(t.verdict), n(t.lag_messages), n(t.lag_seconds, seconds), n(t.rate_per_second, rate)]);
const LAG_HEAD = ["Topic", "Verdict", "#Records", "#Age", "#Read/s"];

const details = {
  service(name, v) {
    const s = v.services.get(name), emits = plan.routes.filter((r) => r.Emitter === name);
    return [
      facts(["Outbox rows", rate(s?.outbox_rows_per_second)], ["Dead letters", count(s?.dead_letters)], ["Held keys", count(s?.held_keys)]),
      h("h3", {}, "Emits"), types(emits),
      h("h3", {}, "Reads"), types(plan.routes.filter((r) => r.Readers.includes(name))),
    ];
  },
  topic(name, v) {
    const t = v.topics.get(name);
    const readers = v.s.groups.flatMap((g) => g.topics.filter((x) => x.topic === name).map((x) => ({ ...x, topic: g.name })));
    return [
      facts(["Rate", rate(t?.rate_per_second)], ["Records kept", count(t?.records)], ["Partitions", count(t?.partitions)]),
      h("h3", {}, "Event types"), types(plan.routes.filter((r) => r.Topic === name)),
      h("h3", {}, "Read by"), table("Readers", ["Group", ...LAG_HEAD.slice(1)], lagRows(readers), "No group has read it yet."),
    ];
  },
  group(name, v) {
    const g = v.groups.get(name);
    const [topics] = [g?.topics.filter((t) => t.kind !== "retry" || t.lag_messages > 0) ?? []];
    const worst = topics.reduce((w, t) => (RANK.indexOf(t.verdict) > RANK.indexOf(w) ? t.verdict : w), "UNKNOWN");
    const link = topics[0] && h("p", {}, h("a", { href: `/lag#${encodeURIComponent(name + " " + topics[0].topic)}` }, "Partitions and the last hour"));
    return [
      word(worst), h("p", { class: "explain" }, g ? EXPLAIN[worst] : "The group has not joined or committed yet."),
      facts(["State in Kafka", g ? g.error || g.state : "–"], ["Members", count(g?.members)],
        ["Dead letters", count(v.dead(name))], ["Held keys", count(v.services.get(name)?.held_keys)]),
      h("h3", {}, "Lag"), table("Lag", LAG_HEAD, lagRows(topics), "Nothing is read yet."), link,
      h("h3", {}, "Wants"), types(plan.routes.filter((r) => r.Readers.includes(name))),
    ].filter(Boolean);
  },
  model(group, v) {
    const m = v.models.get(group), verdict = m?.verdict ?? "UNKNOWN";
    return [
      word(verdict), h("p", { class: "explain" }, EXPLAIN[verdict]),
      facts(["Built by", group], ["Oldest unapplied", seconds(m?.oldest_unapplied_seconds)]),
      h("p", {}, h("a", { href: "/#group:" + group }, "The group that builds it")),
    ];
  },
  relay(_, v) {
    const rows = v.s.slots.map((s) => [s.name, s.active ? "active" : "inactive", s.wal_status, n(s.retained_wal_bytes, bytes), n(s.unconfirmed_wal_bytes, bytes)]);
    return [
      facts(["State", v.s.headline.relay]),
      h("h3", {}, "Replication slots"), table("Slots", ["Slot", "Reader", "WAL", "#Retained", "#Unconfirmed"], rows, v.postgres ? "This database has no logical slot." : "PostgreSQL is not measured."),
      h("h3", {}, "What it publishes"),
      table("Topics", ["Topic", "#Records", "#Rate"], v.s.topics.filter((t) => t.kind === "event").map((t) => [t.name, n(t.records), n(t.rate_per_second, rate)]), "No topic is known yet."),
    ];
  },
  retry(name, v) {
    const [group, delay] = name.split(":"), topics = v.ladder(group, "retry", delay);
    return [
      h("p", { class: "explain" }, `Events that ${group} could not apply wait here for ${delay} and are tried again.`),
      table("Topics", ["Topic", "#Waiting", "#Ever"], topics.map((t) => [t.name, n(v.waiting([t])), n(t.records)]), "No such topic exists yet."),
    ];
  },
  dlq(group, v) {
    const topics = v.ladder(group, "dlq"), dead = v.dead(group);
    return [
      facts(["Unresolved", dead == null ? "not known: no dead_letters table is seen" : count(dead)]),
      h("p", { class: "note" }, "Unresolved rows are exact; the topic keeps every dead letter ever written."),
      h("h3", {}, "Topics"),
      table("Topics", ["Topic", "#Records"], topics.map((t) => [t.name, n(t.records)]), "No such topic exists yet."),
    ];
  },
};

// refreshPanel follows the stream. What has the focus is left alone until it is elsewhere.
export function refreshPanel(view) {
  if (!current || !view || live.contains(document.activeElement)) return;
  const fresh = h("div", {}, ...details[current.kind](current.name, view));
  if (fresh.innerHTML !== live.innerHTML) live.replaceChildren(...fresh.childNodes);
}

function topicsOf({ kind, name, view }) {
  const v = view();
  if (!v) return [];
  if (kind === "topic") return [name];
  if (kind === "service") return [...new Set(plan.routes.filter((r) => r.Emitter === name).map((r) => r.Topic))];
  if (kind === "retry") { const [group, delay] = name.split(":"); return v.ladder(group, "retry", delay).filter((t) => t.records > 0).map((t) => t.name); }
  if (kind === "dlq") return v.ladder(name, "dlq").filter((t) => t.records > 0).map((t) => t.name);
  return [];
}

function startRecords() {
  clearInterval(timer);
  records.replaceChildren();
  records.hidden = !["topic", "service", "retry", "dlq"].includes(current.kind);
  if (records.hidden) return;
  const list = h("div", { id: "records" }), note = h("p", { class: "note" });
  const load = async () => {
    const asked = current;
    const topics = topicsOf(asked);
    try {
      const all = (await Promise.all(topics.map((t) => getJSON("/console/api/records?limit=25&topic=" + encodeURIComponent(t))))).flatMap((a) => a.records.map((r) => ({ topic: a.topic, ...r })));
      if (current !== asked) return;
      all.sort((a, b) => b.time.localeCompare(a.time));
      note.textContent = `as of ${new Date().toLocaleTimeString("en-GB")}`;
      list.replaceChildren(...(all.length ? all.slice(0, 25).map(record) : [h("p", { class: "empty" }, "No records yet.")]));
    } catch (e) {
      if (current === asked) note.textContent = `could not be read: ${e.message}`;
    }
  };
  records.append(h("div", { class: "bar" }, h("h3", {}, "Youngest records"), h("button", { type: "button", class: "button", onclick: load }, "Refresh"), note), list);
  load();
  timer = setInterval(() => {
    if (!list.querySelector("details[open]") && !list.contains(document.activeElement)) load();
  }, 3000);
}

function record(r) {
  const at = new Date(r.time);
  const form = { json: "JSON", decoded: "decoded", bytes: "bytes, hexadecimal", empty: "tombstone: no value" }[r.format];
  return h("details", { class: "record" },
    h("summary", {},
      h("span", { class: "type" }, r.type || "no type"), h("time", { class: "when", datetime: r.time, title: r.time }, at.toLocaleTimeString("en-GB") + "." + String(at.getMilliseconds()).padStart(3, "0")),
      h("span", { class: "key" }, r.key || "no key"), h("span", { class: "when" }, `${r.partition}:${r.offset} · ${bytes(r.bytes)}`)),
    h("dl", {}, h("dt", {}, "id"), h("dd", {}, r.id || "–"),
      ...Object.entries(r.headers).filter(([k]) => k !== "event_id" && k !== "event_type").flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]),
      h("dt", {}, "value"), h("dd", {}, form + (r.truncated ? ", the beginning" : ""))),
    r.text ? h("pre", { tabindex: "0" }, r.text) : null);
}
