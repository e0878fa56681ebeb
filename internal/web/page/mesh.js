// The mesh as a picture: this node in the middle, its peers around it, a line for each
// path. Names come out of gossip, so all text goes in as text.

const ns = "http://www.w3.org/2000/svg";

/** The most peers that a picture shows; more are a table. */
export const most = 40;

function el(name, attributes, text) {
  const e = document.createElementNS(ns, name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

/** Shortens a text so that it takes no more room than it has. */
export function short(text, n) {
  const letters = [...text];
  return letters.length <= n ? text : letters.slice(0, n - 1).join("") + "…";
}

/**
 * Draws into a box. Peers have name, id, path, label (a line about the path), bad, and
 * moved, which is true when the path has just changed. Wires are the paths between peers
 * a and b, by their ids; where there is no room for them they are left out.
 */
export function draw(box, self, peers, summary, wires = []) {
  if (peers.length > most) {
    const p = document.createElement("p");
    p.textContent = `${peers.length} peers are too many for a picture: see the table.`;
    box.replaceChildren(p);
    return;
  }
  const width = Math.max(300, Math.min(1180, box.clientWidth || 600));
  box.replaceChildren(width < 640 || peers.length > 16 ? ladder(width, self, peers, summary) : star(width, self, peers, summary, wires));
}

function frame(width, height, summary) {
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": summary });
  return svg;
}

function node(x, y, p, anchor, dx, dy) {
  const a = el("a", { href: `#peer-${p.id}`, "aria-label": `${p.name}: ${p.path}, ${p.label}` });
  a.append(el("circle", { cx: x, cy: y, r: 9 }));
  a.append(el("text", { x: x + dx, y: y + dy, "text-anchor": anchor }, short(p.name, 22)));
  a.append(el("text", { x: x + dx, y: y + dy + 16, "text-anchor": anchor, class: p.bad ? "soft bad" : "soft" }, p.path));
  a.append(el("text", { x: x + dx, y: y + dy + 31, "text-anchor": anchor, class: "soft" }, short(p.label, p.bad ? 30 : 40)));
  return a;
}

function line(x1, y1, x2, y2, p) {
  return el("line", { x1, y1, x2, y2, class: `${p.path}${p.moved ? " moved" : ""}` });
}

/** A line of a kernel's VXLAN is a double one: it is told apart without colours. */
function wire(svg, x1, y1, x2, y2, p) {
  if (p.path !== "kernel-vxlan") {
    svg.append(line(x1, y1, x2, y2, p));
    return;
  }
  const length = Math.hypot(x2 - x1, y2 - y1) || 1, ox = (y1 - y2) / length * 2.5, oy = (x2 - x1) / length * 2.5;
  svg.append(line(x1 + ox, y1 + oy, x2 + ox, y2 + oy, p), line(x1 - ox, y1 - oy, x2 - ox, y2 - oy, p));
}

/** A path between two peers, bent where it has to be so that it misses the middle by some. */
function bow(svg, cx, cy, [x1, y1], [x2, y2], w) {
  const mx = (x1 + x2) / 2, my = (y1 + y2) / 2, off = Math.hypot(mx - cx, my - cy), away = 70;
  const [ux, uy] = off > 1 ? [(mx - cx) / off, (my - cy) / off] : [0, -1];
  const far = off >= away ? off : 2 * away - off; // of the control point; the curve comes half way to it
  const d = `M ${x1} ${y1} Q ${cx + ux * far} ${cy + uy * far} ${x2} ${y2}`;
  const g = el("g", { class: `bow ${w.path}` });
  g.append(el("title", {}, w.texts.join("\n")), el("path", { d }));
  if (w.path === "kernel-vxlan") g.append(el("path", { d, class: "core" })); // a double line
  svg.append(g);
}

/** Room for it: peers on an ellipse. */
function star(width, self, peers, summary, wires) {
  const n = peers.length, height = n <= 2 ? 200 : Math.max(340, Math.min(760, 140 + n * 42));
  const svg = frame(width, height, summary), cx = width / 2, cy = height / 2 - 8;
  const rx = width / 2 - 230, ry = n <= 2 ? 0 : height / 2 - 70;
  const places = peers.map((p, i) => {
    const turn = (i + .5) / n * 2 * Math.PI + (n <= 2 ? 0 : -Math.PI / 2);
    const at = n <= 2 ? [cx + (i === 0 ? 1 : -1) * rx, cy] : [cx + Math.cos(turn) * rx, cy + Math.sin(turn) * ry];
    return [p, ...at];
  });
  const at = new Map(places.map(([p, x, y]) => [p.id, [x, y]]));
  for (const w of wires) if (at.has(w.a) && at.has(w.b)) bow(svg, cx, cy, at.get(w.a), at.get(w.b), w);
  for (const [p, x, y] of places) wire(svg, cx, cy, x, y, p);
  for (const [p, x, y] of places) {
    const right = x >= cx;
    svg.append(node(x, y, p, right ? "start" : "end", right ? 18 : -18, -8));
  }
  middle(svg, cx, cy, self, "middle", 0, 32);
  return svg;
}

/** Little room, or many peers: this node at the left, peers below one another. */
function ladder(width, self, peers, summary) {
  const columns = width >= 900 ? 2 : 1, rows = Math.ceil(peers.length / columns);
  const height = 60 + Math.max(1, rows) * 58, svg = frame(width, height, summary);
  const top = 62, pitch = 58, cx = columns === 2 ? width / 2 : 22, cy = 22;
  const bottom = top + (rows - 1) * pitch + 14;
  for (const side of peers.length === 0 ? [] : columns === 2 ? [12, -12] : [0]) {
    svg.append(el("line", { x1: cx + side, y1: cy, x2: cx + side, y2: bottom, class: "trunk" }));
  }
  peers.forEach((p, i) => {
    const left = columns === 2 && i % 2 === 1;
    const x = columns === 2 ? (left ? cx - 90 : cx + 90) : 62;
    const y = top + Math.floor(i / columns) * pitch + 14;
    const bend = columns === 2 ? cx + (left ? -12 : 12) : cx;
    wire(svg, bend, y, x, y, p);
    svg.append(node(x, y, p, left ? "end" : "start", left ? -18 : 18, -6));
  });
  middle(svg, cx, cy, self, columns === 2 ? "middle" : "start", columns === 2 ? 0 : 20, columns === 2 ? -999 : 5);
  return svg;
}

function middle(svg, x, y, self, anchor, dx, dy) {
  const g = el("g", { class: "self" });
  g.append(el("circle", { cx: x, cy: y, r: 11 }));
  if (dy === -999) g.append(el("text", { x: x + 20, y: y + 5, "text-anchor": "start" }, short(self, 30)));
  else g.append(el("text", { x: x + dx, y: y + dy, "text-anchor": anchor }, short(self, 30)));
  svg.append(g);
}
