// Tiles of the grids: a strip of six small pictures, of which one is seen; the mouse runs through them,
// and after a short rest the clip plays.

import { clock, el, hours, number, words } from "./dom.js";

export const NUM_PICTURES = 6; // of a strip; pictures.py has it too
const REST_MS = 180;

export function picture(url = "") {
  const strip = el("img", { class: "strip", alt: "", decoding: "async", draggable: "false" });
  const frame = el("div", { class: "picture" }, strip);
  strip.addEventListener("error", () => frame.classList.add("is-empty")); // served, and its reel is gone
  frame.strip = strip; // found without a search when tiles are filled
  showPicture(frame, url);
  return frame;
}

export function showPicture(frame, url) {
  const { strip } = frame;
  frame.classList.toggle("is-empty", !url);
  if (!url) strip.removeAttribute("src");
  else if (strip.getAttribute("src") !== url) strip.src = url;
  turnTo(frame, 2);
}

function turnTo(frame, index) {
  frame.strip.style.transform = `translateX(${(-100 * index) / NUM_PICTURES}%)`;
}

// Let the mouse run through a tile's pictures, and play its clip when it rests.
export function playsUnderTheMouse(tile, frame, urlOf) {
  let rest;
  tile.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return; // a finger that scrolls; see `tap`
    if (frame.querySelector("video")) return;
    const { left, width } = frame.getBoundingClientRect();
    turnTo(frame, Math.max(0, Math.min(NUM_PICTURES - 1, Math.floor(((event.clientX - left) / width) * NUM_PICTURES))));
    clearTimeout(rest);
    rest = setTimeout(() => play(frame, urlOf()), REST_MS);
  });
  tile.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "touch") return;
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

let tapped; // the picture that a finger began to play

// A finger's first tap on a tile plays its clip and ends the one before. Whether it did: the next tap is
// for what a click does elsewhere.
export function tap({ pointerType }, tile) {
  const { frame } = tile.parts;
  const isFinger = pointerType ? pointerType === "touch" : matchMedia("(hover: none)").matches;
  if (!isFinger || !tile.url || isPlaying(frame)) return false;
  if (tapped) stop(tapped);
  tapped = frame;
  play(frame, tile.url);
  return true;
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
    const frame = picture();
    const mark = el("span", { class: "mark" });
    const length = el("span", { class: "length" });
    const name = el("div", { class: "name" });
    const value = el("div", { class: "value" });
    const tile = el("div", { class: "tile", role: "option", tabindex: "-1" }, frame, mark, length, el("div", { class: "text" }, name, value));
    tile.parts = { frame, mark, length, name, value };
    playsUnderTheMouse(tile, frame, () => tile.url);
    return tile;
  }

  fill(tile, clip) {
    const { records, selection, picks, state } = this.page;
    const { parts } = tile;
    tile.url = records.clipUrl(clip);
    showPicture(parts.frame, records.pictureUrl(clip));
    const pick = picks.of(records.digestOf(clip));
    const goes = !selection.stays[clip];
    tile.classList.toggle("goes", goes);
    tile.classList.toggle("is-kept", pick === "keep");
    tile.classList.toggle("is-rejected", pick === "reject");
    tile.setAttribute("aria-selected", String(pick === "keep"));
    parts.mark.textContent = pick === "keep" ? "\u2713" : pick === "reject" ? "\u2715" : "";
    parts.length.textContent = hours(records.seconds(clip));
    parts.name.replaceChildren(words(records.keys[clip]));
    const value = this.valueText(clip);
    const fate = records.fateOf(clip);
    const notes = [value];
    if (typeof fate === "number") notes.unshift(`rejected: ${records.className(fate)}`);
    else if (fate === "pending") notes.unshift("not encoded yet");
    if (records.split[clip] === 2) notes.push("validation");
    if (!value) notes.push(records.caption(clip));
    parts.value.replaceChildren(words(notes.filter(Boolean).join(" \u00b7 ")));
    const will = [goes ? "would go" : "stays", ...selection.reasons(clip, pick)].join(": ");
    tile.setAttribute("aria-label", `${records.keys[clip]}, ${will}${pick ? `, picked: ${pick}` : ""}${value ? `, ${value}` : ""}`);
    tile.title = [records.caption(clip), goes ? will : ""].filter(Boolean).join("\n");
    if (state.values.clip === records.keys[clip]) tile.setAttribute("aria-current", "true");
    else tile.removeAttribute("aria-current");
  }

  valueText(clip) {
    const { records, state } = this.page;
    const [measure] = records.sorting(state.values.sort);
    if (!measure) return "";
    const value = records.value(measure.name, clip);
    return Number.isNaN(value) ? `${measure.name} not measured` : `${measure.name} ${number(value)}`;
  }

  clear(tile) {
    stop(tile.parts.frame);
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
    const frame = picture();
    const length = el("span", { class: "length" });
    const name = el("div", { class: "name" });
    const why = el("div", { class: "why" });
    const value = el("div", { class: "value" });
    const tile = el("div", { class: "tile rejected-tile", role: "option", tabindex: "-1", "aria-selected": "false" }, frame, length, el("div", { class: "text" }, name, why, value));
    tile.parts = { frame, length, name, why, value };
    playsUnderTheMouse(tile, frame, () => tile.url);
    return tile;
  }

  fill(tile, row) {
    const { records } = this.page;
    const { parts } = tile;
    const clip = records.rejected.clip[row];
    tile.url = clip >= 0 ? records.clipUrl(clip) : "";
    showPicture(parts.frame, records.rejectedPictureUrl(row));
    const start = records.rejected.start[row];
    const seconds = records.rejected.end[row] - start;
    parts.length.textContent = Number.isNaN(start) ? "" : `${hours(seconds)} from ${clock(start)}`;
    parts.name.replaceChildren(words(records.rejected.keys[row]));
    parts.why.replaceChildren(words(records.className(records.rejected.class[row])));
    parts.value.replaceChildren(words(records.detailOf(row)));
    tile.title = records.detailOf(row);
    tile.setAttribute("aria-label", `${records.rejected.keys[row]}, ${records.classLabel(records.rejected.class[row])}, ${records.detailOf(row)}`);
  }

  clear(tile) {
    stop(tile.parts.frame);
  }
}
