// A clip's own view: the clip, its decoded latents and the difference, frame by frame.

import { clock, el, number, replaceChildren, words } from "./dom.js";
import { picture, playsUnderTheMouse } from "./tiles.js";
import { timeline } from "./timeline.js";
import { windowRows } from "./windows.js";

const MOST_COPIES = 8; // near-duplicates side by side

export class ClipView {
  // `page` gives records, picks, selection and state; `actions` is what the buttons do.
  constructor(page, actions) {
    this.page = page;
    this.actions = actions;
    this.clip = -1;
    this.frame = 0;
    this.isPlaying = false;
    this.gain = 4;
    this.copies = []; // near-duplicates, side by side
    this.original = this.video("original");
    this.decoded = this.video("decoded");
    this.difference = el("canvas", { class: "difference", role: "img", "aria-label": "Difference between clip and decoded latents" });
    this.body = el("div", { class: "clip-body" });
    this.dialog = el("dialog", { class: "clip-view", "aria-label": "Clip" }, this.body);
    this.dialog.addEventListener("close", () => this.clip >= 0 && actions.close());
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      actions.close();
    });
  }

  video(kind) {
    const video = el("video", { class: kind, playsinline: true, preload: "auto", tabindex: "-1" });
    video.muted = true;
    return video;
  }

  get isOpen() {
    return this.clip >= 0;
  }

  open(clip, frame) {
    const isOther = clip !== this.clip;
    this.clip = clip;
    if (!this.dialog.open) this.dialog.showModal();
    if (isOther) {
      this.pause();
      this.frame = 0;
      this.fill();
    }
    this.turnTo(frame);
  }

  close() {
    this.pause();
    this.clip = -1;
    for (const video of [this.original, this.decoded, ...this.copies.map((copy) => copy.video)]) {
      video.removeAttribute("src");
      video.load();
    }
    if (this.dialog.open) this.dialog.close();
  }

  // Fill again after its latents were decoded, or began to be.
  renew() {
    const { value } = this.note;
    this.fill();
    this.note.value = value;
    this.turnTo(this.frame);
  }

  get length() {
    return this.page.records.frames[this.clip];
  }

  fill() {
    const { records } = this.page;
    const { clip, actions } = this;
    const source = records.source[clip];
    this.original.src = records.clipUrl(clip);
    this.slider = el("input", { type: "range", class: "scrub", min: 0, max: this.length - 1, step: 1, value: 0, "aria-label": "Frame", oninput: () => this.turnTo(Number(this.slider.value), true) });
    this.slider.addEventListener("keydown", (event) => event.key.startsWith("Arrow") && event.preventDefault());
    this.counter = el("output", { class: "counter" });
    this.playButton = el("button", { type: "button", class: "icon", onclick: () => this.toggle(), "aria-label": "Play" }, "\u25b6");
    this.windows = el("div", { class: "windows" });
    this.pickRow = el("div", { class: "pick-row" });
    const digest = records.digestOf(clip);
    const leave = (event) => event.key === "Enter" && event.target.blur(); // so that K and X act again
    this.note = el("input", { type: "text", class: "note", maxlength: 1000, placeholder: "note (optional)", "aria-label": "Note to the pick", onchange: (event) => actions.noted(digest, event.target.value.trim()), onkeydown: leave });
    this.note.value = this.page.picks.noteOf(digest);
    const button = (label, key, action, ...content) => el("button", { type: "button", class: "ghost", onclick: action, "aria-label": label, title: `${label} (${key})` }, ...content);
    const wide = (...content) => el("span", { class: "wide" }, ...content);
    replaceChildren(
      this.body,
      el(
        "header",
        { class: "clip-head" },
        el("h2", {}, words(records.keys[clip])),
        el("div", { class: "clip-nav" }, button("Previous clip", "P", actions.previous, el("span", { class: "narrow" }, "\u2190"), wide("Previous ", el("kbd", {}, "P"))), button("Next clip", "N", actions.next, el("span", { class: "narrow" }, "\u2192"), wide("Next ", el("kbd", {}, "N"))), el("button", { type: "button", class: "ghost close", onclick: actions.close, "aria-label": "Close (Escape)" }, "\u2715")),
      ),
      this.panes(),
      el("div", { class: "transport" }, this.playButton, this.slider, this.counter),
      this.windows,
      this.pickRow,
      el("div", { class: "clip-facts" }, this.facts(), this.scores()),
      this.duplicates(),
      el("h3", {}, "In its source"),
      timeline(records, source, { chosen: clip, open: (span) => actions.openSpan(span) }),
      this.neighbours(),
      this.likes(),
    );
    this.refresh();
  }

  panes() {
    const { records } = this.page;
    const hasDecoded = records.isDecoded.has(this.clip);
    const pane = (title, ...content) => el("figure", { class: "pane" }, el("figcaption", {}, title), ...content);
    if (hasDecoded) this.decoded.src = records.decodedUrl(this.clip);
    else this.decoded.removeAttribute("src");
    this.hasDecoded = hasDecoded;
    const gain = el(
      "label",
      { class: "gain" },
      "\u00d7 ",
      el("select", { "aria-label": "Amplify the difference", onchange: (event) => this.amplify(Number(event.target.value)) }, [1, 4, 10].map((value) => el("option", { value, selected: value === this.gain }, value))),
    );
    return el(
      "div",
      { class: `panes${hasDecoded ? "" : " is-single"}` },
      pane("clip", this.original),
      hasDecoded ? pane("decoded latents", this.decoded) : null,
      hasDecoded ? el("figure", { class: "pane" }, el("figcaption", {}, "difference ", gain), this.difference) : this.missing(),
    );
  }

  // What to do where the latents were not decoded.
  missing() {
    const { records } = this.page;
    if (records.fateOf(this.clip) !== "kept") return el("p", { class: "hint" }, "This clip has no latents: it is not in the dataset.");
    if (!records.data.served) return el("p", { class: "hint" }, "Its latents are not decoded yet. \u201cmake report DECODE=600\u201d gives it up to ten minutes; \u201cmake browse\u201d decodes the clip one looks at.");
    const isDecoding = this.page.decoding.has(records.digestOf(this.clip));
    const button = el("button", { type: "button", class: "primary", disabled: isDecoding, onclick: () => this.actions.decode(this.clip) }, isDecoding ? "decoding \u2026" : "Decode its latents");
    return el("p", { class: "hint" }, button, " ", el("span", {}, records.data.served.cost));
  }

  amplify(gain) {
    this.gain = gain;
    this.difference.style.filter = `brightness(${gain})`;
  }

  facts() {
    const { records } = this.page;
    const number_ = records.source[this.clip];
    const source = records.sources[number_];
    const captions = records.captions(this.clip);
    const [start, end] = [records.start[this.clip], records.end[this.clip]];
    const rows = [
      ["caption", el("span", {}, captions.length ? captions.map((caption) => el("span", { class: "caption" }, words(caption))) : "none")],
      ["source", el("a", { href: "#", onclick: (event) => this.follow(event, number_) }, words(source.key))],
      ["address", words(source.uri)],
      ["licence", source.license ? words(source.license) : "not known"],
      ["time", `${clock(start)} to ${clock(end)}`],
      ["frames", `${this.length} at ${records.data.fps} fps, ${records.data.size} \u00d7 ${records.data.size}`],
      ["state", words(this.stateOf(this.clip))],
      ["digest", el("code", {}, records.digestOf(this.clip).slice(0, 16))],
    ];
    return el("dl", { class: "facts" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }

  stateOf(clip) {
    const { records } = this.page;
    const split = ["", "train", "validation"][records.split[clip]];
    const fate = records.fateOf(clip);
    if (typeof fate === "number") return `rejected: ${records.className(fate)}`;
    return fate === "kept" ? `in the dataset${split ? `, ${split}` : ""}` : "not encoded yet";
  }

  follow(event, source) {
    event.preventDefault();
    this.actions.openSource(source);
  }

  scores() {
    const { records } = this.page;
    const rows = records.measures.map((measure) => {
      const value = records.value(measure.name, this.clip);
      const share = shareBelow(measure, measure.values[this.clip]);
      const meter = Number.isNaN(value) ? "" : el("span", { class: "meter", role: "img", "aria-label": `above ${Math.round(share * 100)} % of the clips` }, el("i", { style: { width: `${share * 100}%` } }));
      return el("tr", { title: measure.meaning }, el("th", { scope: "row" }, words(measure.name)), el("td", { class: "figure" }, number(value)), el("td", { class: "unit" }, words(measure.unit)), el("td", {}, meter));
    });
    return el("table", { class: "scores" }, el("caption", {}, "scores; the bar is the share of clips below"), el("tbody", {}, rows));
  }

  neighbours() {
    const { records } = this.page;
    const spans = records.spansOf(records.source[this.clip]);
    const at = spans.findIndex((span) => span.clip === this.clip);
    const near = [spans[at - 1], spans[at + 1]];
    const cards = near.map((span, side) => (span && span.fate !== "pending" ? this.card(span, side ? "after it" : "before it") : null)).filter(Boolean);
    if (!cards.length) return el("p", { class: "hint" }, "It is the only scene of its source.");
    return el("div", { class: "cards" }, cards);
  }

  card(span, note) {
    const { records } = this.page;
    const { clip, row } = span;
    const frame = picture(clip >= 0 ? records.pictureUrl(clip) : records.rejectedPictureUrl(row));
    const key = clip >= 0 ? records.keys[clip] : records.rejected.keys[row];
    const why = clip >= 0 ? "" : records.className(records.rejected.class[row]);
    const card = el("button", { type: "button", class: "card", onclick: () => this.actions.openSpan(span) }, frame, el("span", { class: "name" }, words(key)), el("span", { class: "value" }, [note, why].filter(Boolean).join(" \u00b7 ")));
    playsUnderTheMouse(card, frame, () => (clip >= 0 ? records.clipUrl(clip) : ""));
    return card;
  }

  likes() {
    const { records } = this.page;
    const likes = records.data.clips.likes[this.clip];
    if (!likes?.length) return null;
    const cards = [[this.clip, 1], ...likes].map(([clip, near]) => this.card({ clip, row: -1 }, clip === this.clip ? "this one" : `cosine ${near.toFixed(3)}`));
    return el("section", { class: "likes" }, el("h3", {}, "Looks most alike"), el("div", { class: "cards" }, cards));
  }

  // Near-duplicates beside the clip, each at the moment at which it shows the same.
  duplicates() {
    const { records } = this.page;
    const others = (records.duplicates.get(this.clip) ?? []).slice(0, MOST_COPIES);
    this.copies = others.length ? [[this.clip, 0], ...others].map((copy) => this.copy(...copy)) : [];
    if (!this.copies.length) return null;
    return el("section", { class: "duplicates" }, el("h3", {}, "Near-duplicates, at the same moment"), el("div", { class: "copies" }, this.copies.map((copy) => copy.figure)));
  }

  copy(clip, later, bits, isMirrored) {
    const { records } = this.page;
    const video = this.video("near");
    video.src = records.clipUrl(clip);
    const isThis = clip === this.clip;
    const shift = later ? `${Math.abs(later).toFixed(1)} s ${later > 0 ? "later" : "earlier"}` : "";
    const how = isThis ? "this one" : [shift, isMirrored ? "mirrored" : "", `${bits.toFixed(1)} of 64 bits apart`].filter(Boolean).join(", ");
    const name = isThis ? el("span", { class: "name" }, words(records.keys[clip])) : el("a", { class: "name", href: "#", onclick: (event) => this.followClip(event, clip) }, words(records.keys[clip]));
    const figure = el("figure", { class: "pane copy" }, video, el("figcaption", {}, name, el("span", {}, how), el("span", {}, words(this.stateOf(clip)))));
    return { figure, video, later, length: records.frames[clip] };
  }

  followClip(event, clip) {
    event.preventDefault();
    this.actions.openSpan({ clip, row: -1 });
  }

  // Where a copy does not show this moment, it stays at its nearest one, and is faint.
  seekCopy({ figure, video, later, length }, time) {
    const last = (length - 0.5) / this.page.records.data.fps;
    const moment = time + later;
    figure.classList.toggle("is-elsewhere", moment < 0 || moment > last + 0.01);
    return seek(video, Math.min(last, Math.max(0, moment)));
  }

  // Fill again what picks change.
  refresh() {
    const { records, picks, selection } = this.page;
    const pick = picks.of(records.digestOf(this.clip));
    const press = (choice, label, key) => el("button", { type: "button", class: `pick ${choice}`, "aria-pressed": String(pick === choice), onclick: () => this.actions.pick(choice), title: `${label} (${key})` }, label, " ", el("kbd", {}, key));
    const reasons = selection.reasons(this.clip, pick);
    const verdict = [selection.stays[this.clip] ? "stays" : "would go", ...reasons].join(": ");
    replaceChildren(
      this.pickRow,
      press("keep", "\u2713 Keep", "K"),
      press("reject", "\u2715 Reject", "X"),
      el("button", { type: "button", class: "ghost", onclick: this.actions.undo }, "Undo ", el("kbd", {}, "U")),
      this.note,
      el("span", { class: "verdict" }, words(verdict)),
    );
  }

  get noteText() {
    return this.note.value.trim();
  }

  async turnTo(frame, isHand = false) {
    if (isHand) this.pause();
    this.frame = Math.max(0, Math.min(this.length - 1, Math.round(frame) || 0));
    this.slider.value = this.frame;
    this.slider.setAttribute("aria-valuetext", `frame ${this.frame} of ${this.length}`);
    const { records } = this.page;
    const seconds = records.start[this.clip] + this.frame / records.data.fps;
    this.counter.textContent = `frame ${this.frame} of ${this.length} \u00b7 ${clock(seconds)}`;
    replaceChildren(this.windows, windowRows(this.length, this.frame, (target) => this.turnTo(target, true)));
    this.actions.turned(this.frame);
    const time = (this.frame + 0.5) / records.data.fps;
    this.wanted = time;
    if (this.isSeeking) return;
    this.isSeeking = true;
    while (this.isOpen && this.wanted !== undefined) {
      const next = this.wanted;
      this.wanted = undefined;
      await Promise.all([seek(this.original, next), this.hasDecoded && seek(this.decoded, next), ...this.copies.map((copy) => this.seekCopy(copy, next))]);
      this.drawDifference();
    }
    this.isSeeking = false;
  }

  drawDifference() {
    if (!this.hasDecoded || !this.original.videoWidth || !this.decoded.videoWidth) return;
    const { difference, original, decoded } = this;
    const size = original.videoWidth;
    if (difference.width !== size) difference.width = difference.height = size;
    const context = difference.getContext("2d");
    context.globalCompositeOperation = "source-over";
    context.drawImage(original, 0, 0, size, size);
    context.globalCompositeOperation = "difference";
    context.drawImage(decoded, 0, 0, size, size);
    this.amplify(this.gain);
    difference.dataset.frame = this.frame;
  }

  step(by) {
    this.turnTo(this.frame + by, true);
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
  }

  // Frame by frame, so that clip and decoded latents show the same one; every frame is a key frame.
  async play() {
    this.isPlaying = true;
    this.playButton.textContent = "\u2759\u2759";
    this.playButton.setAttribute("aria-label", "Pause");
    const pause = 1000 / this.page.records.data.fps;
    while (this.isPlaying && this.isOpen) {
      const start = performance.now();
      await this.turnTo((this.frame + 1) % this.length);
      await new Promise((resume) => setTimeout(resume, Math.max(0, pause - (performance.now() - start))));
    }
  }

  pause() {
    this.isPlaying = false;
    if (!this.playButton) return;
    this.playButton.textContent = "\u25b6";
    this.playButton.setAttribute("aria-label", "Play");
  }
}

function seek(video, time) {
  return new Promise((resume) => {
    const limit = setTimeout(resume, 1500); // a file that is gone
    video.addEventListener(
      "seeked",
      () => {
        clearTimeout(limit);
        resume();
      },
      { once: true },
    );
    video.currentTime = time;
  });
}

function shareBelow(measure, value) {
  if (Number.isNaN(value)) return 0;
  measure.ordered ??= Float64Array.from(measure.values.filter((other) => !Number.isNaN(other))).sort();
  const { ordered } = measure;
  let [low, high] = [0, ordered.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ordered[middle] < value) low = middle + 1;
    else high = middle;
  }
  return ordered.length > 1 ? low / (ordered.length - 1) : 1;
}
