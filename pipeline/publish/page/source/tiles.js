// Tiles of the grids: a strip of six small pictures, of which one is seen; the mouse runs through them,
// and after a short rest the clip plays.

import { clock, el, hours, number, replaceChildren, words } from "./dom.js";

export const NUM_PICTURES = 6; // of a strip; pictures.py has it too
const REST_MS = 180;

export function picture(url) {
  const strip = el("img", { class: "strip", alt: "", decoding: "async", draggable: "false" });
  const frame = el("div", { class: "picture" }, strip);
  showPicture(frame, url);
  return frame;
}

export function showPicture(frame, url) {
  const strip = frame.querySelector(".strip");
  frame.classList.toggle("is-empty", !url);
  if (!url) strip.removeAttribute("src");
  else if (strip.getAttribute("src") !== url) strip.src = url;
  turnTo(frame, 2);
}

function turnTo(frame, index) {
  frame.querySelector(".strip").style.transform = `translateX(${(-100 * index) / NUM_PICTURES}%)`;
}

// Let the mouse run through a tile's pictures, and play its clip when it rests.
export function playsUnderTheMouse(tile, frame, urlOf) {
  let rest;
  tile.addEventListener("pointermove", (event) => {
    if (frame.querySelector("video")) return;
    const { left, width } = frame.getBoundingClientRect();
    turnTo(frame, Math.max(0, Math.min(NUM_PICTURES - 1, Math.floor(((event.clientX - left) / width) * NUM_PICTURES))));
    clearTimeout(rest);
    rest = setTimeout(() => play(frame, urlOf()), REST_MS);
  });
  tile.addEventListener("pointerleave", () => {
    clearTimeout(rest);
    if (!frame.dataset.pinned) stop(frame);
  });
}

export function play(frame, url) {
  if (!url || frame.querySelector("video")) return;
  const video = el("video", { muted: true, loop: true, playsinline: true, preload: "auto", tabindex: "-1", "aria-hidden": "true" });
  video.muted = true;
  video.src = url;
  video.addEventListener("playing", () => frame.classList.add("is-playing"), { once: true });
  frame.append(video);
  video.play().catch(() => {}); // it was taken away before it began
}

export function stop(frame) {
  delete frame.dataset.pinned;
  frame.classList.remove("is-playing");
  turnTo(frame, 2);
  for (const video of frame.querySelectorAll("video")) {
    video.pause();
    video.removeAttribute("src");
    video.load(); // lets go of the file
    video.remove();
  }
}

export function isPlaying(frame) {
  return frame.querySelector("video") !== null;
}

// Tiles of clips. `page` gives records, stays, the pick of a clip and the measure that sorts.
export class ClipTiles {
  minWidth = 168;
  textHeight = 44;

  constructor(page) {
    this.page = page;
  }

  make() {
    const frame = picture("");
    const tile = el(
      "div",
      { class: "tile", role: "option", tabindex: "-1", "aria-selected": "false" },
      frame,
      el("span", { class: "mark" }),
      el("span", { class: "length" }),
      el("div", { class: "text" }, el("div", { class: "name" }), el("div", { class: "value" })),
    );
    playsUnderTheMouse(tile, frame, () => tile.url);
    return tile;
  }

  fill(tile, clip) {
    const { records, selection, picks, state } = this.page;
    tile.url = records.clipUrl(clip);
    showPicture(tile.querySelector(".picture"), records.pictureUrl(clip));
    const pick = picks.of(records.digestOf(clip));
    const goes = !selection.stays[clip];
    tile.classList.toggle("goes", goes);
    tile.classList.toggle("is-kept", pick === "keep");
    tile.classList.toggle("is-rejected", pick === "reject");
    tile.setAttribute("aria-selected", String(pick === "keep"));
    tile.querySelector(".mark").textContent = pick === "keep" ? "\u2713" : pick === "reject" ? "\u2715" : "";
    tile.querySelector(".length").textContent = hours(records.seconds(clip));
    replaceChildren(tile.querySelector(".name"), words(records.keys[clip]));
    const value = this.valueText(clip);
    const fate = records.fateOf(clip);
    const notes = [value];
    if (typeof fate === "number") notes.unshift(records.className(fate));
    else if (fate === "pending") notes.unshift("not encoded yet");
    if (records.split[clip] === 2) notes.push("validation");
    replaceChildren(tile.querySelector(".value"), words(notes.filter(Boolean).join(" \u00b7 ") || records.caption(clip)));
    const will = goes ? "would go" : "stays";
    tile.setAttribute("aria-label", `${records.keys[clip]}, ${will}${pick ? `, picked: ${pick}` : ""}${value ? `, ${value}` : ""}`);
    tile.title = records.caption(clip);
    if (state.values.clip === records.keys[clip]) tile.setAttribute("aria-current", "true");
    else tile.removeAttribute("aria-current");
  }

  valueText(clip) {
    const { records, state } = this.page;
    const measure = records.byMeasure.get(state.values.sort);
    if (!measure) return "";
    const value = records.value(measure.name, clip);
    return Number.isNaN(value) ? `${measure.name} not measured` : `${measure.name} ${number(value)}`;
  }

  clear(tile) {
    stop(tile.querySelector(".picture"));
  }
}

// Tiles of what was rejected: the scene as the reel has it, and why it went.
export class RejectedTiles {
  minWidth = 220;
  textHeight = 82;

  constructor(page) {
    this.page = page;
  }

  make() {
    const frame = picture("");
    const tile = el(
      "div",
      { class: "tile rejected-tile", role: "option", tabindex: "-1", "aria-selected": "false" },
      frame,
      el("span", { class: "length" }),
      el("div", { class: "text" }, el("div", { class: "name" }), el("div", { class: "why" }), el("div", { class: "value" })),
    );
    playsUnderTheMouse(tile, frame, () => tile.url);
    return tile;
  }

  fill(tile, row) {
    const { records } = this.page;
    const clip = records.rejected.clip[row];
    tile.url = clip >= 0 ? records.clipUrl(clip) : "";
    showPicture(tile.querySelector(".picture"), records.rejectedPictureUrl(row));
    const start = records.rejected.start[row];
    const length = records.rejected.end[row] - start;
    tile.querySelector(".length").textContent = Number.isNaN(start) ? "" : `${hours(length)} from ${clock(start)}`;
    replaceChildren(tile.querySelector(".name"), words(records.rejected.keys[row]));
    replaceChildren(tile.querySelector(".why"), words(records.className(records.rejected.class[row])));
    replaceChildren(tile.querySelector(".value"), words(records.detailOf(row)));
    tile.title = records.detailOf(row);
    tile.setAttribute("aria-label", `${records.rejected.keys[row]}, ${records.classLabel(records.rejected.class[row])}, ${records.detailOf(row)}`);
  }

  clear(tile) {
    stop(tile.querySelector(".picture"));
  }
}
