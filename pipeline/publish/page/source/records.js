// What the page knows of a dataset: clips, what was rejected, sources, by number.

import { decoded, exact } from "./columns.js";

export const PENDING = 65535; // a clip's fate; contents.py has it too
export const UNSURE = "unsure:"; // before the name of a measure: sorted by how near to undecided it is
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

export class Records {
  constructor(data) {
    this.data = data;
    const { clips, rejected } = data;
    this.keys = clips.keys;
    this.count = clips.keys.length;
    for (const name of ["digest", "source", "start", "end", "frames", "fate", "split", "picture"]) {
      this[name] = decoded(clips[name]);
    }
    this.ownCaptions = clips.captions ?? {}; // by clip, of those that do not have their source's
    this.isDecoded = new Set(clips.decoded);
    // By clip, the best first: its near-duplicates, each [clip, seconds later, bits, is mirrored, is better].
    this.duplicates = new Map(clips.duplicates);
    this.measures = data.measures.map((measure) => ({ ...measure, values: decoded(measure.column) }));
    this.byMeasure = new Map(this.measures.map((measure) => [measure.name, measure]));
    this.sources = data.sources;
    this.rejected = { keys: rejected.keys, picture: rejected.picture };
    for (const name of ["class", "source", "start", "end", "clip", "detail", "first", "last", "tries"]) {
      this.rejected[name] = decoded(rejected[name]);
    }
    this.numberOf = new Map(this.keys.map((key, clip) => [key, clip]));
    this.sourceOf = new Map(this.sources.map((source, number) => [source.key, number]));
    this.byDigest = new Map();
    for (let clip = 0; clip < this.count; clip++) this.byDigest.set(this.digestOf(clip), clip);
  }

  digestOf(clip) {
    let text = "";
    for (let at = clip * 32; at < clip * 32 + 32; at++) text += HEX[this.digest[at]];
    return text;
  }

  seconds(clip) {
    return this.frames[clip] / this.data.fps;
  }

  captions(clip) {
    return this.ownCaptions[clip] ?? this.sources[this.source[clip]]?.captions ?? [];
  }

  caption(clip) {
    return this.captions(clip)[0] ?? "";
  }

  // What a word of the address sorts by: [the measure, whether by how undecided it is].
  sorting(sort) {
    const isUnsure = sort.startsWith(UNSURE);
    return [this.byMeasure.get(isUnsure ? sort.slice(UNSURE.length) : sort), isUnsure];
  }

  value(name, clip) {
    const measure = this.byMeasure.get(name);
    return measure ? exact(measure.values, clip) : NaN;
  }

  // What became of a clip: "kept", "pending", or the number of the class of its rejection.
  fateOf(clip) {
    const fate = this.fate[clip];
    return fate === 0 ? "kept" : fate === PENDING ? "pending" : fate - 1;
  }

  className(number) {
    return this.data.classes[number][1];
  }

  classLabel(number) {
    return this.data.classes[number].join(": ");
  }

  detailOf(row) {
    return this.data.rejected.details[this.rejected.detail[row]];
  }

  timesOf(row) {
    const { times } = this.data.rejected;
    return { first: times[this.rejected.first[row]], last: times[this.rejected.last[row]] };
  }

  // Text a search looks through, in small letters. Made when it is first asked for.
  searchable(clip) {
    this.texts ??= new Array(this.count);
    const own = (this.ownCaptions[clip] ?? []).join(" ");
    return (this.texts[clip] ??= `${this.keys[clip]} ${this.sourceText(this.source[clip])} ${own}`.toLowerCase());
  }

  sourceText(number) {
    this.sourceTexts ??= [];
    const source = this.sources[number];
    if (!source) return "";
    return (this.sourceTexts[number] ??= [source.key, source.uri, source.license ?? "", ...source.captions].join(" "));
  }

  // Everything that lies on a source's timeline, in order of time.
  spansOf(source) {
    this.spans ??= this.collectSpans();
    return this.spans[source] ?? [];
  }

  collectSpans() {
    const spans = this.sources.map(() => []);
    for (let clip = 0; clip < this.count; clip++) {
      const fate = this.fateOf(clip);
      spans[this.source[clip]]?.push({ clip, row: -1, start: this.start[clip], end: this.end[clip], fate });
    }
    this.rejected.keys.forEach((_, row) => {
      const start = this.rejected.start[row];
      if (Number.isNaN(start) || this.rejected.clip[row] >= 0) return;
      const span = { clip: -1, row, start, end: this.rejected.end[row], fate: this.rejected.class[row] };
      spans[this.rejected.source[row]]?.push(span);
    });
    for (const [source, start, end] of this.data.pending) {
      spans[source]?.push({ clip: -1, row: -1, start, end, fate: "pending" });
    }
    for (const list of spans) list.sort((a, b) => a.start - b.start);
    return spans;
  }

  // Where the files lie, seen from the page.
  clipUrl(clip) {
    return this.place("clip", { key: this.keys[clip], digest: this.digestOf(clip) });
  }

  pictureUrl(clip) {
    return this.picture[clip] ? this.place("picture", { digest: this.digestOf(clip) }) : "";
  }

  rejectedPictureUrl(row) {
    const digest = this.rejected.picture[row];
    return digest ? this.place("picture", { digest }) : "";
  }

  decodedUrl(clip) {
    return this.place("decoded", { digest: this.digestOf(clip) });
  }

  place(kind, values) {
    return this.data.places[kind].replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(values[name]));
  }
}
