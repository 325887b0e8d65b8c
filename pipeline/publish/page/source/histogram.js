// A histogram of one measure with a threshold at either end, to be dragged or moved by arrow keys.

import { el, number, replaceChildren, svg, words } from "./dom.js";

const MOST_BINS = 48;
const NO_BIN = 255; // of what is not measured
const PLOT_WIDTH = 240; // of the drawing, which is stretched to the panel
const PLOT_HEIGHT = 44;
const SKEW = 8; // the largest value is so many times the 90th percentile: then the axis is bent

export class Histogram {
  // `changed(name, threshold)` is called while a handle moves, with low and high, null for none.
  constructor(measure, changed, sorted) {
    this.measure = measure;
    this.changed = changed;
    this.threshold = { low: null, high: null };
    this.axis = axisOf(measure.values);
    this.numBins = this.axis.numBins;
    this.bins = Uint8Array.from(measure.values, (value) => this.binOf(value));
    this.everything = svg("path", { class: "bars all" });
    this.staying = svg("path", { class: "bars stay" });
    this.low = this.handle("low");
    this.high = this.handle("high");
    this.readout = el("output", { class: "readout" });
    const reset = el("button", { class: "link reset", type: "button", onclick: () => this.move({ low: null, high: null }) }, "reset");
    this.reset = reset;
    const title = el("button", { class: "link title", type: "button", title: `${measure.meaning}. Sort by it.`, onclick: () => sorted(measure.name) }, words(measure.name));
    const track = el(
      "div",
      { class: "track" },
      svg("svg", { viewBox: `0 0 ${PLOT_WIDTH} ${PLOT_HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.everything, this.staying),
      this.low,
      this.high,
    );
    this.track = track;
    track.addEventListener("pointerdown", (event) => this.grab(event));
    const scale = el("div", { class: "scale", "aria-hidden": "true" }, el("span", {}, number(Math.abs(this.axis.low) < this.axis.high / 1000 ? 0 : this.axis.low, 3)), el("span", {}, words(measure.unit)), el("span", {}, number(this.axis.high, 3)));
    this.node = el("section", { class: "histogram", "data-measure": measure.name }, el("header", {}, title, this.readout, reset), track, scale);
    this.draw(null);
    this.place();
  }

  binOf(value) {
    return Number.isNaN(value) ? NO_BIN : Math.min(this.numBins - 1, Math.floor(this.axis.binShareOf(value) * this.numBins));
  }

  draw(stays) {
    const all = new Uint32Array(256);
    const staying = new Uint32Array(256);
    for (let clip = 0; clip < this.bins.length; clip++) {
      all[this.bins[clip]] += 1;
      if (!stays || stays[clip]) staying[this.bins[clip]] += 1;
    }
    const most = Math.max(1, ...all.subarray(0, this.numBins));
    this.everything.setAttribute("d", bars(all, most, this.numBins));
    this.staying.setAttribute("d", bars(staying, most, this.numBins));
  }

  handle(side) {
    const which = side === "low" ? "at least" : "at most";
    return el("div", {
      class: `handle ${side}`,
      role: "slider",
      tabindex: "0",
      "aria-label": `${this.measure.name}, ${which}`,
      "aria-valuemin": this.axis.low,
      "aria-valuemax": this.axis.high,
      onkeydown: (event) => this.key(event, side),
    });
  }

  grab(event) {
    const { left, width } = this.track.getBoundingClientRect();
    const shareAt = (x) => Math.max(0, Math.min(1, (x - left) / width));
    const start = shareAt(event.clientX);
    const toLow = Math.abs(start - this.shareOf("low"));
    const toHigh = Math.abs(start - this.shareOf("high"));
    const side = toLow === toHigh ? (start < this.shareOf("low") ? "low" : "high") : toLow < toHigh ? "low" : "high";
    const drag = (moved) => this.moveTo(side, shareAt(moved.clientX));
    const end = () => {
      this.track.removeEventListener("pointermove", drag);
      this.track.classList.remove("is-dragged");
    };
    this.track.setPointerCapture(event.pointerId);
    this.track.classList.add("is-dragged");
    this.track.addEventListener("pointermove", drag);
    this.track.addEventListener("pointerup", end, { once: true });
    this.track.addEventListener("pointercancel", end, { once: true });
    this[side].focus({ preventScroll: true });
    drag(event);
    event.preventDefault();
  }

  key(event, side) {
    const steps = { ArrowRight: 0.01, ArrowUp: 0.01, ArrowLeft: -0.01, ArrowDown: -0.01, PageUp: 0.1, PageDown: -0.1, Home: -1, End: 1 };
    if (!(event.key in steps)) return;
    this.moveTo(side, this.shareOf(side) + steps[event.key]);
    event.preventDefault();
    event.stopPropagation();
  }

  shareOf(side) {
    const value = this.threshold[side];
    if (value === null) return side === "low" ? 0 : 1;
    return this.axis.shareOf(value);
  }

  moveTo(side, share) {
    const isOpen = side === "low" ? share <= 0 : share >= 1;
    const value = isOpen ? null : rounded(this.axis.valueAt(share), this.axis.isWhole);
    const next = { ...this.threshold, [side]: value, [side === "low" ? "strictLow" : "strictHigh"]: false };
    if (next.low !== null && next.high !== null && next.low > next.high) return;
    this.move(next);
  }

  move(threshold) {
    this.set(threshold);
    this.changed(this.measure.name, this.threshold);
  }

  set(threshold) {
    this.threshold = { low: null, high: null, ...threshold };
    this.place();
  }

  place() {
    const { low, high } = this.threshold;
    for (const side of ["low", "high"]) {
      const share = Math.max(0, Math.min(1, this.shareOf(side)));
      this[side].style.left = `${share * 100}%`;
      this[side].setAttribute("aria-valuenow", this.threshold[side] ?? this.axis[side]);
      this[side].setAttribute("aria-valuetext", this.threshold[side] === null ? "no limit" : `${this.threshold[side]} ${this.measure.unit}`);
    }
    this.track.style.setProperty("--low", `${this.shareOf("low") * 100}%`);
    this.track.style.setProperty("--high", `${this.shareOf("high") * 100}%`);
    const isSet = low !== null || high !== null;
    this.reset.hidden = !isSet;
    this.node.classList.toggle("is-set", isSet);
    const { strictLow, strictHigh } = this.threshold;
    const above = `${strictLow ? "more than" : "at least"} ${low}`;
    const below = `${strictHigh ? "less than" : "at most"} ${high}`;
    const text = low !== null && high !== null ? `${low} to ${high}` : low !== null ? above : high !== null ? below : "";
    replaceChildren(this.readout, text);
  }
}

// Where values lie on the axis, 0 to 1. A few that are far away bend it, so that the rest is seen.
function axisOf(values) {
  const finite = Float64Array.from(values.filter((value) => Number.isFinite(value))).sort();
  const low = finite.length ? finite[0] : 0;
  let high = finite.length ? finite[finite.length - 1] : 1;
  if (high === low) high = low + (Math.abs(low) || 1) * 0.01;
  const tall = finite.length ? finite[Math.floor(finite.length * 0.9)] : high;
  const bend = high - low > SKEW * Math.max(tall - low, (high - low) * 1e-6) ? 3 : 1;
  const isWhole = finite.every((value) => Number.isInteger(value));
  const shareOf = (value) => Math.max(0, (Math.min(value, high) - low) / (high - low)) ** (1 / bend);
  // Bins of whole numbers hold equally many of them, else some stand out that are not more.
  const perBin = Math.ceil((high - low + 1) / MOST_BINS);
  const isEven = isWhole && bend === 1 && high - low >= 1;
  const numBins = isEven ? Math.ceil((high - low + 1) / perBin) : MOST_BINS;
  return {
    low,
    high,
    isWhole,
    numBins,
    shareOf,
    binShareOf: isEven ? (value) => (value - low) / (numBins * perBin) : shareOf,
    valueAt: (share) => low + share ** bend * (high - low),
  };
}

function rounded(value, isWhole) {
  if (isWhole) return Math.round(value);
  return Number(value.toPrecision(3));
}

function bars(counts, most, numBins) {
  const step = PLOT_WIDTH / numBins;
  let path = "";
  for (let bin = 0; bin < numBins; bin++) {
    if (!counts[bin]) continue;
    const height = Math.max(1.5, (counts[bin] / most) * PLOT_HEIGHT);
    path += `M${(bin * step).toFixed(2)} ${PLOT_HEIGHT}v${(-height).toFixed(2)}h${(step - 0.8).toFixed(2)}v${height.toFixed(2)}z`;
  }
  return path;
}
