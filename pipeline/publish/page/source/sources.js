// Sources: a list with the timeline of each, and one source by itself.

import { bytes, clock, el, hours, number, several, words } from "./dom.js";
import { picture, playsUnderTheMouse } from "./tiles.js";
import { label, timeline } from "./timeline.js";

const SHOWN = 60; // rows of the list that are drawn at a time

export function sourceList(records, numbers, { openSpan, openSource }) {
  const list = el("div", { class: "source-list" });
  let drawn = 0;
  const more = el("button", { type: "button", class: "ghost more", onclick: () => draw() });
  function draw() {
    const next = numbers.slice(drawn, drawn + SHOWN);
    drawn += next.length;
    more.before(...next.map((source) => row(records, source, openSpan, openSource)));
    more.hidden = drawn >= numbers.length;
    more.textContent = `${several(numbers.length - drawn, "more source")}`;
  }
  list.append(more);
  draw();
  return list;
}

function row(records, source, openSpan, openSource) {
  const facts = records.sources[source];
  return el(
    "article",
    { class: "source-row" },
    el("header", {}, el("button", { type: "button", class: "link source-name", onclick: () => openSource(source) }, words(facts.key)), el("span", { class: "tally" }, tally(records, source))),
    facts.seconds ? timeline(records, source, { open: openSpan }) : el("p", { class: "hint" }, "not fetched"),
  );
}

function tally(records, source) {
  const spans = records.spansOf(source);
  const kept = spans.filter((span) => span.fate === "kept").length;
  const dropped = spans.filter((span) => typeof span.fate === "number").length;
  return [several(kept, "clip"), dropped ? `${dropped} rejected` : "", hours(records.sources[source].seconds ?? 0)].filter(Boolean).join(" \u00b7 ");
}

export function sourcePage(records, source, { openSpan, back, onlyHere }) {
  const facts = records.sources[source];
  const spans = records.spansOf(source);
  const whole = records.rejected.keys.map((_, rejected) => rejected).filter((rejected) => records.rejected.source[rejected] === source && Number.isNaN(records.rejected.start[rejected]));
  const rows = [
    ["address", words(facts.uri)],
    ["licence", facts.license ? words(facts.license) : "not known"],
    ["caption", facts.captions.length ? facts.captions.map((caption) => el("span", { class: "caption" }, words(caption))) : "none"],
  ];
  if (facts.seconds) {
    rows.push(["video", `${facts.width} \u00d7 ${facts.height}, ${number(facts.fps)} fps, ${facts.codec}, ${clock(facts.seconds)}, ${bytes(facts.bytes)}`]);
    rows.push(["cuts", facts.cuts.length ? facts.cuts.map(clock).join(", ") : "none"]);
  }
  return el(
    "div",
    { class: "source-page" },
    el("button", { type: "button", class: "link", onclick: back }, "\u2190 all sources"),
    el("h2", {}, words(facts.key)),
    el("dl", { class: "facts" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    facts.seconds ? timeline(records, source, { open: openSpan }) : null,
    whole.map((rejected) => el("p", { class: "hint" }, el("b", {}, words(records.classLabel(records.rejected.class[rejected]))), " ", words(records.detailOf(rejected)))),
    spans.some((span) => span.clip >= 0) ? el("div", { class: "source-actions" }, el("button", { type: "button", class: "ghost", onclick: () => onlyHere(source) }, "Its clips in the grid")) : null,
    el("h3", {}, several(spans.length, "scene")),
    el("ol", { class: "span-list" }, spans.slice(0, 500).map((span) => el("li", {}, spanRow(records, span, openSpan)))),
  );
}

function spanRow(records, span, openSpan) {
  const { clip, row: rejected } = span;
  const url = clip >= 0 ? records.pictureUrl(clip) : rejected >= 0 ? records.rejectedPictureUrl(rejected) : "";
  const frame = picture(url);
  const detail = rejected >= 0 ? records.detailOf(rejected) : "";
  const button = el(
    "button",
    { type: "button", class: "span-row", onclick: () => openSpan(span), disabled: span.fate === "pending" },
    frame,
    el("span", { class: "span-time" }, `${clock(span.start)} \u2013 ${clock(span.end)}`),
    el("span", { class: "span-what" }, words(label(records, span)), detail ? el("small", {}, words(detail)) : null),
  );
  playsUnderTheMouse(button, frame, () => (clip >= 0 ? records.clipUrl(clip) : ""));
  return button;
}
