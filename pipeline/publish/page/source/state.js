// What one sees, as the part of the address after #, so that a link shows another person the same.

const DEFAULTS = {
  view: "clips",
  q: "",
  source: "", // of which clips are listed
  license: "",
  split: "",
  show: "all",
  sort: "key",
  order: "up",
  class: "",
  page: "", // the source whose own page is open
  clip: "",
  frame: "",
};

export class State {
  constructor(changed) {
    this.changed = changed;
    this.values = { ...DEFAULTS };
    this.thresholds = new Map(); // by measure: [low, high] as they stand in the address
    this.off = new Set(); // rules of the recipe that are switched off
    this.isTouched = false; // whether thresholds are other than the recipe's
    this.read();
    addEventListener("hashchange", () => {
      if (location.hash !== this.hash()) {
        this.read();
        this.changed();
      }
    });
  }

  read() {
    const words = new URLSearchParams(location.hash.slice(1));
    this.values = { ...DEFAULTS };
    this.thresholds.clear();
    this.off.clear();
    this.isTouched = words.has("rules");
    for (const [name, value] of words) {
      if (name in DEFAULTS) this.values[name] = value;
      else if (name === "off") this.off.add(value);
      else if (name.startsWith("t.")) this.thresholds.set(name.slice(2), limits(value));
    }
  }

  hash() {
    const words = new URLSearchParams();
    for (const [name, value] of Object.entries(this.values)) {
      if (value !== DEFAULTS[name]) words.set(name, value);
    }
    if (this.isTouched) words.set("rules", "edited");
    for (const [name, threshold] of this.thresholds) words.set(`t.${name}`, written(threshold));
    for (const name of this.off) words.append("off", name);
    const text = words.toString();
    return text ? `#${text}` : "";
  }

  // Another view or clip is a step one can go back from; a filter or a frame is not.
  set(values, isStep = false) {
    Object.assign(this.values, values);
    this.write(isStep);
    this.changed();
  }

  write(isStep = false) {
    const address = this.hash() || location.pathname + location.search;
    if (this.hash() === location.hash) return;
    if (isStep) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  }
}

// A threshold in the address: "0.1~0.9", "~5"; ! before a limit that itself goes.
function written({ low, high, strictLow, strictHigh }) {
  const limit = (value, isStrict) => (value === null ? "" : `${isStrict ? "!" : ""}${value}`);
  return `${limit(low, strictLow)}~${limit(high, strictHigh)}`;
}

function limits(text) {
  const [low = "", high = ""] = text.split("~");
  const value = (limit) => {
    const digits = limit.replace("!", "");
    return digits === "" || !Number.isFinite(Number(digits)) ? null : Number(digits);
  };
  return { low: value(low), high: value(high), strictLow: low.startsWith("!"), strictHigh: high.startsWith("!") };
}
