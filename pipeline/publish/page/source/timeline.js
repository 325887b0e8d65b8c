// A source's time from left to right: its scenes, what became of each, and the cuts between them.

import { clock, el, svg } from "./dom.js";

const LINE_WIDTH = 1000;
const LINE_HEIGHT = 30;

// `chosen` is the clip one looks at; `open` is called with a span that is clicked.
export function timeline(records, number, { chosen = -1, open }) {
  const source = records.sources[number];
  const [from, to] = [source.start ?? 0, Math.max(source.end ?? 0, source.seconds ? 0 : 1)];
  const length = Math.max(1e-3, to - from);
  const at = (seconds) => ((seconds - from) / length) * LINE_WIDTH;
  const spans = records.spansOf(number);
  const drawing = svg("svg", { viewBox: `0 0 ${LINE_WIDTH} ${LINE_HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `Timeline of ${source.key}: ${spans.length} scenes` });
  drawing.append(svg("rect", { class: "empty", x: 0, y: 6, width: LINE_WIDTH, height: LINE_HEIGHT - 12 }));
  for (const span of spans) {
    const kind = span.fate === "kept" ? "kept" : span.fate === "pending" ? "pending" : "dropped";
    const rect = svg(
      "rect",
      {
        class: `span ${kind}${span.clip >= 0 && span.clip === chosen ? " chosen" : ""}`,
        x: at(span.start) + 1,
        y: 3,
        width: Math.max(1.5, at(span.end) - at(span.start) - 2),
        height: LINE_HEIGHT - 6,
        onclick: () => open(span),
      },
      svg("title", {}, `${label(records, span)}: ${clock(span.start)} to ${clock(span.end)}`),
    );
    drawing.append(rect);
  }
  for (const cut of source.cuts) drawing.append(svg("line", { class: "cut", x1: at(cut), x2: at(cut), y1: 0, y2: LINE_HEIGHT }));
  return el("figure", { class: "timeline" }, drawing, el("figcaption", {}, el("span", {}, clock(from)), el("span", {}, clock(to))));
}

export function label(records, span) {
  if (span.fate === "pending") return "not done yet";
  const key = span.clip >= 0 ? records.keys[span.clip] : records.rejected.keys[span.row];
  return span.fate === "kept" ? `${key} is in the dataset` : `${key} was rejected (${records.className(span.fate)})`;
}
