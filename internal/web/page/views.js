// What the peers see: this node asks them for it, and only while the box is ticked. What
// they say is theirs alone; all of it goes into the page as text.

const every = 5000, patience = 20000, mostTroubles = 20;
const worst = ["none", "userspace-udp", "userspace-vxlan", "kernel-vxlan", "direct"]; // first

/** Whether the box may be ticked, and what was said since it was. */
export class Views {
  /** changed() is called when there is something else to show. */
  constructor(line, box, said, changed) {
    Object.assign(this, { line, box, said, changed, peers: [], omitted: 0, asking: 0 });
    box.addEventListener("change", () => this.ask(++this.asking));
  }

  /** Shows the box, if this node was told that it may ask. */
  allow(may) {
    if (this.line.hidden !== may) return;
    this.line.hidden = !may;
    if (!may && this.box.checked) {
      this.box.checked = false;
      this.ask(++this.asking);
    }
  }

  /** Asks again and again until the box is ticked or unticked, which makes another turn. */
  async ask(turn) {
    if (!this.box.checked) {
      this.tell([], 0, "");
      return;
    }
    if (this.peers.length === 0) this.tell([], 0, "Asking…");
    if (!document.hidden) {
      try {
        const answer = await fetch("mesh", { signal: AbortSignal.timeout(patience), cache: "no-store" });
        if (!answer.ok) throw new Error(answer.status);
        const mesh = await answer.json();
        if (turn !== this.asking) return;
        const answered = mesh.peers.filter(v => v.status).length, more = mesh.omitted > 0 ? `, ${mesh.omitted} more were not asked` : "";
        this.tell(mesh.peers, mesh.omitted, `${answered} of ${mesh.peers.length} peers have answered${more}.`);
      } catch {
        if (turn !== this.asking) return;
        this.tell([], 0, "The node has not answered what its peers say.");
      }
    }
    setTimeout(() => { if (turn === this.asking) this.ask(turn); }, every);
  }

  tell(peers, omitted, text) {
    Object.assign(this, { peers, omitted });
    if (this.said.textContent !== text) this.said.textContent = text;
    this.changed();
  }

  get on() { return this.box.checked; }

  /** Rows of a table: each of the peers' own peers, and who has not answered. */
  rows() {
    return this.peers.flatMap(v => v.status ? v.status.peers.map(p => ({
      key: `${v.id} ${p.id}`, from: name(v), to: name(p), path: p.path, reason: p.path_reason, rtt: p.rtt_us,
      since: Math.max(0, Date.now() - Date.parse(p.path_since)), bad: p.path === "none" && p.state !== "left",
    })) : [{ key: v.id, from: name(v), to: "", path: "", reason: `${v.address}: ${v.error}`, rtt: 0, since: null, bad: true }]);
  }

  /** What the peers find wrong, in lines. */
  troubles() {
    const all = this.peers.flatMap(v => v.status ? [
      ...v.status.node.warnings.map(w => `${name(v)} says: ${w}`),
      ...v.status.peers.filter(p => p.path === "none" && p.state !== "left").map(p => `${name(v)} cannot reach ${name(p)}: ${p.path_reason}`),
    ] : []);
    return all.length <= mostTroubles ? all : [...all.slice(0, mostTroubles), `and ${all.length - mostTroubles} more that the peers say`];
  }

  /** Lines of a picture: each two peers of which one has said something, by the worse of
   * their two directions. */
  wires() {
    const pairs = new Map();
    for (const v of this.peers) {
      for (const p of v.status?.peers ?? []) {
        if (p.state === "left") continue;
        const [a, b] = v.id < p.id ? [v.id, p.id] : [p.id, v.id], key = `${a} ${b}`;
        const path = worst.includes(p.path) ? p.path : "none";
        const pair = pairs.get(key) ?? { a, b, path, texts: [] };
        if (worst.indexOf(path) < worst.indexOf(pair.path)) pair.path = path;
        pair.texts.push(`${name(v)} to ${name(p)}: ${p.path}`);
        pairs.set(key, pair);
      }
    }
    return [...pairs.values()];
  }
}

function name(p) {
  return p.name || p.id.slice(0, 8);
}
