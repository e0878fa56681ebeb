// The page of a node: it asks /status every two seconds, and /leases now and then, and
// shows what they say. All that comes from there goes into the page as text, since names
// and reasons come out of gossip.

import { draw } from "./mesh.js";
import { Views } from "./views.js";

const every = 2000, leasesEvery = 10000, patience = 8000, remembered = 50;
const paths = ["direct", "kernel-vxlan", "userspace-udp", "userspace-vxlan", "none"];

const inOrder = new Intl.Collator(undefined, { numeric: true }).compare;

const $ = id => document.getElementById(id);
let last = null;           // the status before, and when it came
let moved = new Map();     // peers by id whose path has just changed, until when
let leasesAt = -Infinity;
let redraw = () => {};     // the picture, as the last status has it
let ahead = 0;             // how far the node's clock is ahead of ours, in ms

function make(name, text, className) {
  const e = document.createElement(name);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}

/** Writes text where it is another than before, so that nobody is read the same again. */
function say(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

function units(n, step, names) {
  let i = 0;
  for (; n >= step && i < names.length - 1; i++) n /= step;
  return `${i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${names[i]}`;
}
const bytes = n => units(n, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
const rate = n => units(n * 8, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]);
const trip = us => us > 0 ? (us < 1000 ? `${us} µs` : `${(us / 1000).toFixed(us < 10000 ? 2 : 1)} ms`) : "–";

function age(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

/** A table whose rows can be sorted by any column, by pointer and by keyboard. */
class Table {
  /** Columns have a title, of(row) to show, and by(row) to sort by; number aligns right. */
  constructor(element, caption, columns) {
    this.element = element;
    this.columns = columns;
    this.rows = [];
    this.sorted = 0;
    this.down = false;
    this.made = new Map();
    element.setAttribute("role", "table");
    const head = make("thead"), row = make("tr");
    columns.forEach((c, i) => {
      const th = make("th", undefined, c.number ? "number" : "");
      th.scope = "col";
      th.setAttribute("role", "columnheader");
      const button = make("button", c.title);
      button.type = "button";
      button.addEventListener("click", () => {
        this.down = this.sorted === i ? !this.down : !!c.number;
        this.sorted = i;
        this.show();
      });
      th.append(button);
      row.append(th);
    });
    row.setAttribute("role", "row");
    head.setAttribute("role", "rowgroup");
    head.append(row);
    this.body = make("tbody");
    this.body.setAttribute("role", "rowgroup");
    element.setAttribute("aria-label", caption);
    element.replaceChildren(head, this.body);
  }

  set(rows) {
    this.rows = rows;
    this.show();
  }

  show() {
    const c = this.columns[this.sorted], by = c.by || c.of;
    [...this.element.tHead.rows[0].cells].forEach((th, i) => {
      if (i === this.sorted) th.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const sorted = this.rows.map(r => [by(r), r]).sort(([a], [b]) =>
      typeof a === "number" && typeof b === "number" ? a - b : inOrder(String(a), String(b)));
    if (this.down) sorted.reverse();
    // Rows and cells stay, so that neither the focus nor a selection is lost.
    const kept = new Map(), focused = document.activeElement;
    sorted.forEach(([, r], i) => {
      const key = r.anchor || r.key || `${this.columns[0].of(r)} ${r.owner_id || ""}`;
      const tr = this.made.get(key) || this.make();
      kept.set(key, tr);
      if (this.body.rows[i] !== tr) this.body.insertBefore(tr, this.body.rows[i] || null);
      tr.className = r.bad ? "bad" : "";
      if (r.anchor) tr.id = r.anchor;
      this.columns.forEach((c, j) => {
        const cell = tr.cells[j], name = c.className ? c.className(r) : c.number ? "number" : "";
        if (cell.className !== name) cell.className = name;
        say(cell, String(c.of(r)));
      });
    });
    this.made = kept;
    while (this.body.rows.length > sorted.length) this.body.deleteRow(-1);
    // One that was moved has lost it.
    if (document.activeElement !== focused && this.body.contains(focused)) focused.focus({ preventScroll: true });
  }

  /** An empty row. Roles are named, since on a phone a row is no row for the layout. */
  make() {
    const tr = make("tr");
    tr.setAttribute("role", "row");
    tr.tabIndex = -1; // the picture leads here
    this.columns.forEach((c, j) => {
      const cell = make(j === 0 ? "th" : "td");
      if (j === 0) cell.scope = "row";
      cell.setAttribute("role", j === 0 ? "rowheader" : "cell");
      cell.dataset.title = c.title;
      tr.append(cell);
    });
    return tr;
  }
}

const peers = new Table($("peers"), "Peers", [
  { title: "Peer", of: p => p.name || p.id.slice(0, 8) },
  { title: "State", of: p => p.state },
  { title: "Path", of: p => p.path, className: p => `path ${paths.includes(p.path) ? p.path : "none"}` },
  { title: "Why", of: p => p.reason, className: () => "text" },
  { title: "For", of: p => age(p.since), by: p => p.since, number: true },
  { title: "Round trip", of: p => trip(p.rtt), by: p => p.rtt, number: true },
  { title: "Out", of: p => p.out === null ? "–" : rate(p.out), by: p => p.out ?? -1, number: true },
  { title: "In", of: p => p.in === null ? "–" : rate(p.in), by: p => p.in ?? -1, number: true },
  { title: "Sent", of: p => bytes(p.tx), by: p => p.tx, number: true },
  { title: "Received", of: p => bytes(p.rx), by: p => p.rx, number: true },
  { title: "Subnets", of: p => p.subnets },
  { title: "Endpoint", of: p => p.endpoint },
  { title: "Last proof", of: p => p.proof === null ? "never" : `${age(p.proof)} ago`, by: p => p.proof ?? Infinity, number: true },
]);
const leases = new Table($("leases"), "Leases", [
  { title: "Subnet", of: l => l.prefix },
  { title: "Owner", of: l => l.owner || l.owner_id.slice(0, 8) },
  { title: "Owner is", of: l => l.owner_state },
  { title: "State", of: l => l.state },
  { title: "Kind", of: l => l.class },
  { title: "Owns it", of: l => l.wins ? "yes" : "no" },
  { title: "Why", of: l => l.why, className: () => "text" },
  { title: "Expires", of: l => new Date(l.expires).toLocaleString(), by: l => Date.parse(l.expires), number: true },
]);
const seen = new Table($("views"), "What the peers see", [
  { title: "Peer", of: v => v.from },
  { title: "Sends to", of: v => v.to },
  { title: "Path", of: v => v.path || "–", by: v => v.path, className: v => `path ${paths.includes(v.path) ? v.path : "none"}` },
  { title: "Why", of: v => v.reason, className: () => "text" },
  { title: "For", of: v => v.since === null ? "–" : age(v.since), by: v => v.since ?? -1, number: true },
  { title: "Round trip", of: v => trip(v.rtt), by: v => v.rtt, number: true },
]);
const views = new Views($("asking"), $("ask"), $("asked"), () => {
  $("views-section").hidden = !views.on;
  seen.set(views.rows());
  redraw();
});
const drops = new Table($("drops"), "Drops", [
  { title: "Reason", of: d => d.reason },
  { title: "Packets", of: d => d.count, number: true },
  { title: "Each second", of: d => d.rate === null ? "–" : d.rate.toFixed(1), by: d => d.rate ?? -1, number: true },
]);

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(patience), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  if (path === "status") views.allow(answer.headers.get("Overlayd-Asks-Peers") === "yes");
  const skew = Date.parse(answer.headers.get("Date")) - Date.now();
  ahead = Math.abs(skew) > 5000 ? skew : 0; // the header has whole seconds
  return answer.json();
}

/** What a peer's row shows. */
function row(p, now) {
  const was = last && last.peers.get(p.id), seconds = last && (now - last.at) / 1000;
  // A counter that has become smaller is one of a node that was started anew.
  const speed = (is, was) => was === undefined || is < was || !(seconds > 0) ? null : (is - was) / seconds;
  return {
    anchor: `peer-${p.id}`, id: p.id, name: p.name, state: p.state, path: p.path, reason: p.path_reason,
    since: Math.max(0, Date.now() + ahead - Date.parse(p.path_since)), rtt: p.rtt_us, proof: p.last_proof_ms,
    tx: p.tx_bytes, rx: p.rx_bytes, out: speed(p.tx_bytes, was?.tx_bytes), in: speed(p.rx_bytes, was?.rx_bytes),
    subnets: p.subnets.join(", "), endpoint: p.endpoint || "none",
    bad: p.path === "none" && p.state !== "left",
  };
}

/** Notes which paths have changed, for eyes and for ears. */
function notice(status, now) {
  for (const p of status.peers) {
    const was = last && last.peers.get(p.id);
    if (!was || was.path === p.path) continue;
    moved.set(p.id, now + 3000);
    const item = make("li"), at = make("time", new Date().toLocaleTimeString());
    at.dateTime = new Date().toISOString();
    item.append(at, ` ${p.name || p.id}: from ${was.path} to ${p.path}${p.path_reason ? `: ${p.path_reason}` : ""}`);
    $("changes").prepend(item);
    while ($("changes").children.length > remembered) $("changes").lastElementChild.remove();
    $("no-changes").hidden = true;
  }
  for (const [id, until] of moved) if (until < now) moved.delete(id);
}

/** A list whose items are made anew only when they are others. */
function list(e, texts) {
  if ([...e.children].map(c => c.textContent).join("\n") === texts.join("\n")) return;
  e.replaceChildren(...texts.map(t => make("li", t)));
}

function picture(node, rows, now) {
  const shown = rows.filter(p => p.state !== "left").map(p => ({
    id: p.id, name: p.name || p.id.slice(0, 8), path: p.path, bad: p.bad, moved: moved.has(p.id) && moved.get(p.id) >= now,
    label: p.bad ? p.reason : [trip(p.rtt), p.out === null ? "" : `↑ ${rate(p.out)} ↓ ${rate(p.in ?? 0)}`].filter(Boolean).join(", "),
  }));
  const focus = document.activeElement?.closest?.("#mesh a")?.getAttribute("href");
  draw($("mesh"), node.name, shown, `${node.name} and its ${shown.length} peers, with the path to each; the table below says the same`, views.wires());
  if (focus) [...$("mesh").querySelectorAll("a")].find(a => a.getAttribute("href") === focus)?.focus();
  const count = new Map(paths.map(p => [p, 0]));
  for (const p of rows) count.set(p.path, (count.get(p.path) ?? 0) + 1);
  const seen = paths.filter(p => count.get(p) > 0);
  list($("legend"), seen.map(p => `${p}: ${count.get(p)}`));
  [...$("legend").children].forEach((li, i) => { li.className = `path ${seen[i]}`; });
}

function show(status) {
  const now = performance.now(), node = status.node;
  notice(status, now);
  const rows = status.peers.map(p => row(p, now)), up = rows.filter(p => p.path !== "none").length;
  document.title = `${node.name} – overlayd`;
  say($("name"), node.name);
  say($("about"), `${node.subnets.length ? node.subnets.join(", ") : "no subnet yet"} · at ${node.endpoints.join(", ") || "no endpoint"} · ` +
    `${node.encap}, MTU ${node.mtu}, fast path ${node.fast_path} · overlayd ${node.version}`);
  $("pulse").className = "";
  say($("pulse"), `${up} of ${rows.filter(p => p.state !== "left").length} peers can be reached`);
  redraw = () => {
    const troubles = [...node.warnings, ...rows.filter(p => p.bad).map(p => `${p.name || p.id} cannot be reached: ${p.reason}`), ...views.troubles()];
    $("troubles").hidden = troubles.length === 0;
    list($("trouble-list"), troubles);
    picture(node, rows, performance.now());
  };
  redraw();
  peers.set(rows);
  const seconds = last && (now - last.at) / 1000;
  const dropped = Object.entries(status.drops).filter(([, count]) => count > 0).map(([reason, count]) => ({
    reason, count, rate: last && seconds > 0 && count >= (last.drops[reason] ?? 0) ? (count - (last.drops[reason] ?? 0)) / seconds : null,
  }));
  $("no-drops").hidden = dropped.length > 0;
  $("drops").hidden = dropped.length === 0;
  drops.set(dropped);
  last = { at: now, peers: new Map(status.peers.map(p => [p.id, p])), drops: status.drops };
}

async function look() {
  let status, owned;
  try {
    status = await ask("status");
    if (performance.now() - leasesAt >= leasesEvery) owned = await ask("leases");
  } catch {
    $("pulse").className = "stale";
    say($("pulse"), last ? "The node does not answer: what is shown is old." : "The node does not answer.");
    return;
  }
  show(status);
  if (owned) {
    leases.set(owned.leases);
    leasesAt = performance.now();
  }
}

/** One question after the other; none while nobody looks. */
async function live() {
  try {
    if (!document.hidden) await look();
  } finally {
    setTimeout(live, every);
  }
}

live();
