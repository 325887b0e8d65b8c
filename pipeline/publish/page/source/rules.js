// Which clips stay: the recipe's rules, the thresholds that are dragged here, and picks. The same
// as `[keep]` does, clip by clip: a rule of which a score is not measured drops nothing.

import { comparable, exact } from "./columns.js";

const COMPARE = {
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
  "==": (a, b) => a === b,
  "!=": (a, b) => a !== b,
};
const CALCULATE = { "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => a / b };
const UNKNOWN = null;

// Kleene's logic, as expression.py has it: false wins, then what is not known.
function all(truths) {
  if (truths.includes(false)) return false;
  return truths.includes(UNKNOWN) ? UNKNOWN : true;
}

const not = (truth) => (truth === UNKNOWN ? UNKNOWN : !truth);

function numberOf(tree, valueOf) {
  if (typeof tree === "number") return tree;
  if (typeof tree === "string") return valueOf(tree);
  const [operation, ...parts] = tree;
  const values = parts.map((part) => numberOf(part, valueOf));
  if (values.some(Number.isNaN)) return NaN;
  const result = operation === "negative" ? -values[0] : CALCULATE[operation](...values);
  return Number.isFinite(result) ? result : NaN;
}

export function truth(tree, valueOf) {
  const [kind, ...parts] = tree;
  if (kind === "and") return all(parts.map((part) => truth(part, valueOf)));
  if (kind === "or") return not(all(parts.map((part) => not(truth(part, valueOf)))));
  if (kind === "not") return not(truth(parts[0], valueOf));
  const [operations, operands] = parts;
  const values = operands.map((operand) => numberOf(operand, valueOf));
  return all(
    operations.map((operation, at) => {
      const [left, right] = [values[at], values[at + 1]];
      return Number.isNaN(left) || Number.isNaN(right) ? UNKNOWN : COMPARE[operation](left, right);
    }),
  );
}

// A rule of a recipe, or one made by dragging: { name, text, tree } or { name, measure, low, high }.
export class Selection {
  constructor(records) {
    this.records = records;
    this.stays = new Uint8Array(records.count).fill(1);
    this.masks = new Map(); // of thresholds, by measure
    this.thresholds = new Map(); // by measure: { low, high, strictLow, strictHigh }
    this.rules = records.data.rules.map((rule) => ({ ...rule, isOn: true, mask: null }));
    this.basis = this.basisOf();
    this.resetThresholds();
  }

  // What no rule can bring back: clips that a stage after the rules has rejected.
  basisOf() {
    const { records } = this;
    const closed = new Set();
    records.data.classes.forEach(([stage], number) => stage !== "keep" && closed.add(number + 1));
    return Uint8Array.from(records.fate, (fate) => (closed.has(fate) ? 0 : 1));
  }

  // The recipe's own thresholds: rules that compare one score with one or two numbers.
  resetThresholds() {
    this.thresholds.clear();
    this.masks.clear();
    for (const rule of this.rules) {
      rule.isOn = true;
      if (rule.threshold) this.setThreshold(rule.threshold.measure, rule.threshold);
    }
  }

  // The rule of the recipe that a measure's threshold stands for.
  ruleOf(name) {
    return this.rules.find((rule) => rule.threshold?.measure === name);
  }

  setThreshold(name, { low = null, high = null, strictLow = false, strictHigh = false }) {
    if (low === null && high === null) {
      this.thresholds.delete(name);
      this.masks.delete(name);
      return;
    }
    const { values } = this.records.byMeasure.get(name);
    const least = low === null ? -Infinity : comparable(values, low);
    const most = high === null ? Infinity : comparable(values, high);
    const mask = this.masks.get(name) ?? new Uint8Array(values.length);
    for (let clip = 0; clip < values.length; clip++) {
      const value = values[clip];
      const isBelow = strictLow ? value <= least : value < least;
      const isAbove = strictHigh ? value >= most : value > most;
      mask[clip] = isBelow || isAbove ? 0 : 1; // NaN is neither, so it stays
    }
    this.thresholds.set(name, { low, high, strictLow, strictHigh });
    this.masks.set(name, mask);
  }

  maskOf(rule) {
    if (!rule.mask) {
      const { records } = this;
      const columns = new Map(rule.names.map((name) => [name, records.byMeasure.get(name)?.values]));
      rule.mask = new Uint8Array(records.count);
      for (let clip = 0; clip < records.count; clip++) {
        const valueOf = (name) => (columns.get(name) ? exact(columns.get(name), clip) : NaN);
        rule.mask[clip] = truth(rule.tree, valueOf) === false ? 0 : 1;
      }
    }
    return rule.mask;
  }

  // Go through all clips again; `picks` gives by digest "keep" or "reject".
  update(picks) {
    const { records, stays } = this;
    const masks = [...this.masks.values()];
    for (const rule of this.rules) if (rule.isOn && !rule.threshold) masks.push(this.maskOf(rule));
    stays.set(this.basis);
    for (const mask of masks) for (let clip = 0; clip < stays.length; clip++) stays[clip] &= mask[clip];
    for (const [digest, pick] of picks) {
      const clip = records.byDigest.get(digest);
      if (clip !== undefined && this.basis[clip]) stays[clip] = pick === "keep" ? 1 : 0;
    }
    this.dropDuplicates(picks);
    this.totals = { clips: 0, frames: 0, all: 0, allFrames: 0 };
    for (let clip = 0; clip < stays.length; clip++) {
      if (!this.basis[clip]) continue;
      this.totals.all += 1;
      this.totals.allFrames += records.frames[clip];
      if (!stays[clip]) continue;
      this.totals.clips += 1;
      this.totals.frames += records.frames[clip];
    }
  }

  // Why a clip stays or goes, where a pick, a rule, a threshold or a better clip decides it.
  reasons(clip, pick) {
    if (!this.basis[clip]) return [];
    if (pick) return ["by hand"];
    if (this.stays[clip]) return [];
    const broken = this.rules.filter((rule) => rule.isOn && !rule.threshold && !this.maskOf(rule)[clip]).map((rule) => `not ${rule.text}`);
    for (const [name, threshold] of this.thresholds) if (!this.masks.get(name)[clip]) broken.push(`not ${comparison(name, threshold)}`);
    return broken.length ? broken : ["a better clip shows the same"];
  }

  // Of clips that show the same, as far as the last build compared them, the best that stays does; media/duplicates.py has it too.
  dropDuplicates(picks) {
    const { records, stays } = this;
    const isKept = (clip) => picks.get(records.digestOf(clip)) === "keep";
    for (const [clip, others] of records.duplicates) {
      if (!stays[clip] || isKept(clip)) continue;
      const isShown = ([other, , , , isBetter]) => stays[other] && (isBetter || isKept(other));
      if (others.some(isShown)) stays[clip] = 0;
    }
  }

  // The lines of TOML that choose these clips.
  recipe(numPicks, picksFile) {
    const lines = ["[keep]"];
    const notes = [];
    if (numPicks) lines.push(`picks = ${quoted(picksFile)}`);
    for (const rule of this.rules) {
      if (rule.isOn && !rule.threshold) lines.push(`${rule.name} = ${quoted(rule.text)}`);
    }
    let filter = "";
    for (const [name, threshold] of this.thresholds) {
      const measure = this.records.byMeasure.get(name);
      if (measure.rule === "keep") {
        const rule = this.ruleOf(name)?.name ?? ruleName(name);
        lines.push(`${rule} = ${quoted(comparison(name, threshold))}`);
      } else if (measure.rule === "filter" && threshold.low !== null) {
        const least = Math.ceil(threshold.low);
        const most = this.records.data.max_frames;
        filter = `[filter]\nmin_frames = ${least}`;
        if (most !== null && 2 * least - 1 > most) notes.push(`# min_frames = ${least} needs max_frames = ${2 * least - 1} or more, and then longer clips are split otherwise`);
        if (threshold.high !== null) notes.push(`# ${comparison(name, { high: threshold.high })}: a recipe cannot say that`);
      } else {
        notes.push(`# ${comparison(name, threshold)}: a recipe cannot say that; pick the clips instead`);
      }
    }
    if (lines.length === 1) lines.pop();
    const parts = [filter, lines.join("\n"), notes.join("\n")].filter(Boolean);
    return parts.length ? `${parts.join("\n\n")}\n` : "# nothing is chosen yet: drag a threshold\n";
  }
}

function comparison(name, { low = null, high = null, strictLow = false, strictHigh = false }) {
  const [above, below] = [strictLow ? ">" : ">=", strictHigh ? "<" : "<="];
  if (high === null) return `${name} ${above} ${low}`;
  if (low === null) return `${name} ${below} ${high}`;
  return `${low} ${strictLow ? "<" : "<="} ${name} ${below} ${high}`;
}

// A recipe's names of rules: letters, digits, - and _, a letter first.
function ruleName(name) {
  const short = name.toLowerCase().replace(/[^a-z0-9_-]+/g, "-").replace(/^[^a-z]+/, "");
  return (short || "rule").slice(0, 40);
}

function quoted(text) {
  return JSON.stringify(text);
}
