// Presses of keep and reject: by digest, the last one counts, undo takes one back. The served page
// sends each to the server, which adds a line to the picks file; an opened file remembers them in the
// browser and gives the same lines as a download.

export class Picks {
  constructor(data, changed, failed) {
    this.served = data.served ?? null;
    this.name = data.name;
    this.changed = changed;
    this.failed = failed;
    this.lines = [...data.picks];
    this.fresh = []; // lines that were added here
    this.undone = []; // what to restore, press by press
    this.queue = Promise.resolve();
    if (!this.served) this.restore();
    this.rebuild();
  }

  get storageKey() {
    return `longtake.picks.${this.name}`;
  }

  restore() {
    try {
      const known = new Set(this.lines.map((line) => JSON.stringify(line)));
      const stored = JSON.parse(localStorage.getItem(this.storageKey) ?? "[]");
      this.fresh = stored.filter((line) => isLine(line) && !known.has(JSON.stringify(line)));
    } catch {
      this.fresh = [];
    }
    this.lines.push(...this.fresh);
  }

  rebuild() {
    this.latest = new Map(); // what counts, by digest
    this.notes = new Map();
    for (const line of this.lines) this.count(line);
  }

  count({ clip, pick, note }) {
    if (pick === null) this.latest.delete(clip);
    else this.latest.set(clip, pick);
    this.notes.set(clip, pick === null ? "" : note);
  }

  // Whether some are remembered by this browser only.
  get isElsewhere() {
    return !this.served && this.fresh.length > 0;
  }

  of(digest) {
    return this.latest.get(digest) ?? null;
  }

  noteOf(digest) {
    return this.notes.get(digest) ?? "";
  }

  // Pressing the same key again takes the pick back.
  press(digest, pick, note = "") {
    const before = this.of(digest);
    const after = before === pick ? null : pick;
    this.undone.push({ clip: digest, pick: before, note: this.noteOf(digest) });
    this.add(digest, after, note);
    return after;
  }

  // Another note to a pick; without a pick it waits for one.
  annotate(digest, note) {
    const [pick, before] = [this.of(digest), this.noteOf(digest)];
    if (pick === null || note === before) return;
    this.undone.push({ clip: digest, pick, note: before });
    this.add(digest, pick, note);
  }

  undo() {
    const last = this.undone.pop();
    if (!last) return null;
    this.add(last.clip, last.pick, last.note);
    return last;
  }

  add(clip, pick, note) {
    const line = { clip, pick, time: new Date().toISOString().replace(/\.\d+Z$/, "Z"), note };
    this.lines.push(line);
    this.fresh.push(line);
    this.count(line);
    if (this.served) this.queue = this.queue.then(() => this.send(line));
    else this.keep();
    this.changed();
  }

  keep() {
    try {
      localStorage.setItem(this.storageKey, JSON.stringify(this.fresh));
    } catch {
      this.failed("This browser does not remember picks: download them before you leave.");
    }
  }

  async send(line) {
    try {
      const answer = await fetch("picks", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Longtake-Token": this.served.token },
        body: JSON.stringify(line),
      });
      if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
    } catch (error) {
      this.failed(`The pick was not saved: ${error.message}. Is \u201cmake browse\u201d still running?`);
    }
  }

  // Lines of other people that a live page has heard of.
  merge(lines) {
    const ours = this.served ? [] : this.fresh;
    this.lines = [...lines, ...ours];
    this.rebuild();
  }

  text() {
    const line = ({ clip, note, pick, time }) => JSON.stringify({ clip, note, pick, time });
    return this.lines.map((entry) => `${line(entry)}\n`).join("");
  }
}

function isLine(line) {
  const isPick = line?.pick === null || line?.pick === "keep" || line?.pick === "reject";
  return isPick && /^[0-9a-f]{64}$/.test(line.clip) && typeof line.time === "string" && typeof line.note === "string";
}
