// What every page shares: the one stream, the age of what it brought, and how numbers are written.

export const plan = JSON.parse(document.getElementById("plan").textContent);

const STALE = 5; // seconds: as old as the server calls a source stale

export const RANK = ["UNKNOWN", "OK", "LAGGING", "REWOUND", "STALLED", "STOPPED"];
export const EXPLAIN = {
  UNKNOWN: "Not measured: no committed offset is known, or Kafka did not say.",
  OK: "Nothing waits, or what waits is young.",
  LAGGING: "The group moves, but is behind.",
  REWOUND: "The committed offset went backwards and is not yet back where it was.",
  STALLED: "A member owns a partition where records wait, and its commit does not move.",
  STOPPED: "Records wait and nobody owns the partition.",
};

// h makes an element: h("p", {class: "note"}, "text", child).
export function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else if (value === true) e.setAttribute(name, "");
    else if (value !== false && value != null) e.setAttribute(name, value);
  }
  e.append(...children.filter((c) => c != null));
  return e;
}

// show writes a text and its state: ok, zero, empty or unknown look different.
export function show(e, text, state = "ok") {
  if (e.textContent !== text) e.textContent = text;
  if (e.dataset.state !== state) e.dataset.state = state;
}

export const stateOf = (n) => (n == null ? "unknown" : n === 0 ? "zero" : "ok");

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export const count = (n) => (n == null ? "–" : grouped.format(n));

// short keeps a number to a handful of characters: 12,345 and then 123k, 1.2M.
export function short(n) {
  if (n == null) return "–";
  if (n < 100000) return grouped.format(n);
  if (n < 1e6) return Math.floor(n / 1e3) + "k";
  return (n / 1e6).toFixed(n < 1e7 ? 1 : 0) + "M";
}

export function rate(n) {
  if (n == null) return "–";
  if (n === 0) return "0/s";
  return (n < 10 ? n.toFixed(1) : grouped.format(n)) + "/s";
}

export function seconds(n) {
  if (n == null) return "–";
  if (n === 0) return "0 s";
  if (n < 1) return Math.max(1, Math.round(n * 1000)) + " ms";
  if (n < 10) return (Number.isInteger(n) ? n : n.toFixed(1)) + " s";
  if (n < 120) return Math.round(n) + " s";
  if (n < 7200) return Math.floor(n / 60) + " min";
  if (n < 172800) return Math.floor(n / 3600) + " h";
  return Math.floor(n / 86400) + " d";
}

const old = (n) => (n < 120 ? Math.round(n) + " s" : seconds(n)) + " old";

export function bytes(n) {
  if (n == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) (n /= 1000), i++;
  return (i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + units[i];
}

const SVG = "http://www.w3.org/2000/svg";

// spark draws values (null for gaps) as a small line whose floor is 0.
export function spark(svg, values, width = 120, height = 26) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const top = Math.max(...values.map((v) => v ?? 0), 0);
  const x = (i) => (i / Math.max(1, values.length - 1)) * width;
  const y = (v) => (top === 0 ? height - 1.5 : height - 1.5 - (v / top) * (height - 3));
  let line = "", area = "", from = null;
  values.forEach((v, i) => {
    if (v == null) { if (from != null) area += `V${height}Z`; from = null; return; }
    const p = `${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
    line += (from == null ? "M" : "L") + p;
    area += from == null ? `M${x(i).toFixed(1)} ${height}L${p}` : "L" + p;
    from = i;
    const next = values[i + 1];
    if (next == null) { area += `L${x(i).toFixed(1)} ${height}Z`; from = null; }
  });
  let [a, l] = svg.children;
  if (!l) {
    a = document.createElementNS(SVG, "path"); a.setAttribute("class", "area");
    l = document.createElementNS(SVG, "path"); l.setAttribute("class", "line");
    svg.replaceChildren(a, l);
  }
  a.setAttribute("d", area);
  l.setAttribute("d", line);
}

export async function getJSON(url) {
  const answer = await fetch(url, { headers: { accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail || answer.statusText);
  return body;
}

// connect opens the stream and calls back with every snapshot. It keeps the header's ages and the banner:
// numbers stay on the page when the stream breaks, and the page says how old they are.
export function connect(query, onSnapshot) {
  let last = null, arrived = 0, opened = performance.now(), state = "opening";
  const stream = new EventSource("/console/stream" + query);
  stream.addEventListener("snapshot", (e) => {
    last = JSON.parse(e.data);
    arrived = performance.now();
    state = "live";
    onSnapshot(last);
    tick();
  });
  stream.addEventListener("bye", () => { state = "bye"; tick(); });
  stream.onerror = () => {
    if (state !== "bye") state = "broken";
    // After an answer that is no stream the browser gives up by itself.
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
    tick();
  };
  const pill = (name) => document.querySelector(`.source[data-source=${name}]`);
  const setPill = (name, text, mood, title) => {
    const p = pill(name), dd = p.querySelector("dd");
    if (dd.textContent !== text) dd.textContent = text;
    p.dataset.mood = mood;
    p.title = title || "";
  };
  function sourcePill(name, source, since) {
    if (!source) return setPill(name, "…", "unknown");
    if (!source.configured) return setPill(name, "not configured", "unknown");
    if (source.age_seconds == null) return setPill(name, source.error ? "away" : "…", source.error ? "bad" : "unknown", source.error);
    const age = source.age_seconds + since;
    setPill(name, (source.error ? "away, " : "") + old(age), age > STALE || source.error ? "bad" : "good", source.error);
  }
  function tick() {
    const since = last ? (performance.now() - arrived) / 1000 : (performance.now() - opened) / 1000;
    const broken = state === "broken" || state === "bye" || since > 4;
    sourcePill("kafka", last?.sources.kafka, since);
    sourcePill("postgres", last?.sources.postgres, since);
    setPill("stream", state === "bye" ? "ended" : broken ? "broken" : last ? "live" : "…", broken ? "bad" : last ? "good" : "unknown");
    const stale = (s) => !s || s.age_seconds == null || s.age_seconds + since > STALE;
    document.body.classList.toggle("broken", broken);
    document.body.classList.toggle("kafka-stale", broken || stale(last?.sources.kafka));
    document.body.classList.toggle("postgres-stale", broken || stale(last?.sources.postgres));
    banner(broken, since);
  }
  function banner(broken, since) {
    const b = document.getElementById("banner");
    let text = "";
    const howOld = last ? ` What you see is ${old(since)}.` : "";
    if (state === "bye") text = `converge is shutting down.${howOld} This page goes on by itself when it is back.`;
    else if (broken) text = `The stream from converge broke.${howOld} Connecting again…`;
    else if (last) {
      const away = [];
      for (const [name, s] of [["Kafka", last.sources.kafka], ["PostgreSQL", last.sources.postgres]]) {
        if (s.configured && s.error) away.push(`${name} cannot be measured (${s.error}).`);
      }
      text = away.join(" ");
    }
    if (b.textContent !== text) b.textContent = text;
    b.hidden = text === "";
    b.classList.toggle("bad", broken);
  }
  setInterval(tick, 500);
  tick();
  return { get last() { return last; } };
}
