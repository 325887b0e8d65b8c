// The funnel as a picture: a band as high as there are hours of video, and what each stage dropped
// falling out of it. Every class is a button.

import { bytes, count, el, hours, svg, words } from "./dom.js";

const STAGE_WIDTH = 120; // of a stage, in units of the drawing
const FUNNEL_HEIGHT = 110;
const WORDS = {
  expand: "sources named",
  download: "videos fetched",
  cut: "scenes between cuts",
  filter: "scenes long enough",
  extract: "clips",
  score: "clips measured",
  keep: "clips chosen",
  caption: "clips with a caption",
  encode: "samples",
  shard: "shards",
};

export function funnel(records, chosen, choose) {
  const { stages, classes } = records.data;
  const most = Math.max(...stages.map((stage) => stage.hours), 1e-9);
  const heightOf = (stage) => Math.max(3, (FUNNEL_HEIGHT * stage.hours) / most);
  const heights = stages.map(heightOf);
  if (stages.length > 1 && !stages[0].hours) heights[0] = heights[1]; // nobody knows how long a source is
  const drawing = svg(
    "svg",
    { class: "funnel-picture", viewBox: `0 0 ${STAGE_WIDTH * stages.length} ${FUNNEL_HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...stages.map((stage, at) => (Object.keys(stage.rejected).length ? lost(at, heights) : null)),
    svg("path", { class: "band", d: band(heights) }),
  );
  const cells = stages.map((stage) =>
    el(
      "li",
      { class: "stage", "data-stage": stage.stage },
      el("div", { class: "stage-name" }, words(stage.stage)),
      el("div", { class: "stage-count" }, count(stage.out)),
      el("div", { class: "stage-what" }, WORDS[stage.stage] ?? "records"),
      el("div", { class: "stage-size" }, [stage.hours ? hours(stage.hours * 3600) : "", stage.bytes ? bytes(stage.bytes) : ""].filter(Boolean).join(" \u00b7 ")),
      stage.pending ? el("div", { class: "stage-pending" }, `${count(stage.pending)} to do`) : null,
      Object.entries(stage.rejected).map(([reason, number]) => {
        const index = classes.findIndex(([name, why]) => name === stage.stage && why === reason);
        const isOn = chosen === `${stage.stage}:${reason}`;
        return el(
          "button",
          { class: "chip", type: "button", "aria-pressed": String(isOn), onclick: () => choose(isOn ? "" : `${stage.stage}:${reason}`), disabled: index < 0 },
          el("b", {}, count(number)),
          " ",
          words(reason),
        );
      }),
    ),
  );
  return el(
    "section",
    { class: "funnel", "aria-label": "Funnel: what each stage took in, gave and dropped" },
    drawing,
    el("ol", { class: "stages", style: { gridTemplateColumns: `repeat(${stages.length}, minmax(0, 1fr))` } }, cells),
  );
}

// The band: from each stage's height to the next one's, first along the top, then back below.
function band(heights) {
  const middle = FUNNEL_HEIGHT / 2;
  const edge = (sign) =>
    heights.map((height, at) => {
      const left = at * STAGE_WIDTH;
      const [y, before] = [middle + (sign * height) / 2, middle + (sign * (heights[at - 1] ?? height)) / 2];
      return { left, bend: left + STAGE_WIDTH * 0.4, right: left + STAGE_WIDTH, y, before };
    });
  const top = edge(-1).map(({ left, bend, right, y, before }) => `C${(left + bend) / 2} ${before} ${(left + bend) / 2} ${y} ${bend} ${y}L${right} ${y}`);
  const below = edge(1)
    .reverse()
    .map(({ left, bend, y, before }) => `L${bend} ${y}C${(left + bend) / 2} ${y} ${(left + bend) / 2} ${before} ${left} ${before}`);
  const last = middle + heights.at(-1) / 2;
  return `M0 ${middle - heights[0] / 2}${top.join("")}L${STAGE_WIDTH * heights.length} ${last}${below.join("")}z`;
}

// What a stage dropped: the part of the band that does not go on, falling out below.
function lost(at, heights) {
  const [before, after] = [heights[at - 1] ?? heights[at], heights[at]];
  if (before - after < 0.5) return svg("g");
  const left = at * STAGE_WIDTH;
  const middle = FUNNEL_HEIGHT / 2;
  const [top, bottom] = [middle - before / 2, middle + before / 2];
  const end = left + STAGE_WIDTH * 0.75;
  return svg("path", { class: "band lost", d: `M${left} ${top}C${left + STAGE_WIDTH * 0.3} ${top} ${end} ${top} ${end} ${FUNNEL_HEIGHT}H${left}V${bottom}z` });
}
