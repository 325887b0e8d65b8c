// Which frames of a clip training takes: windows of F frames, `stride` apart, from a first frame on.

import { el, svg } from "./dom.js";

export const WINDOWS = [
  { frames: 5, stride: 16, what: "keyframes" },
  { frames: 17, stride: 4, what: "between keyframes" },
  { frames: 65, stride: 1, what: "every frame" },
];

export function spanOf({ frames, stride }) {
  return (frames - 1) * stride + 1;
}

// The first frame of a window that begins at `first`, or as late as the clip allows; null: too short.
export function startOf(window, first, length) {
  const latest = length - spanOf(window);
  return latest < 0 ? null : Math.min(first, latest);
}

export function framesOf(window, first, length) {
  const start = startOf(window, first, length);
  if (start === null) return [];
  return Array.from({ length: window.frames }, (_, index) => start + index * window.stride);
}

export function windowRows(length, first, turnTo) {
  return WINDOWS.map((window) => {
    const name = `${window.frames}@${window.stride}`;
    const frames = framesOf(window, first, length);
    const many = length - spanOf(window) + 1;
    const text = frames.length
      ? `${many} such ${many === 1 ? "window" : "windows"}`
      : `needs ${spanOf(window)} frames`;
    const marks = frames.map((frame) =>
      svg("rect", { x: frame, y: 1, width: Math.max(0.8, length / 300), height: 8, onclick: () => turnTo(frame) }, svg("title", {}, `frame ${frame}`)),
    );
    const shown = frames.length > 6 ? `${frames.slice(0, 3).join(", ")} \u2026 ${frames.at(-1)}` : frames.join(", ");
    return el(
      "div",
      { class: "window", "data-window": name, title: shown },
      el("span", { class: "window-name" }, el("b", {}, name), ` ${window.what}`),
      svg("svg", { viewBox: `0 0 ${length} 10`, preserveAspectRatio: "none", role: "img", "aria-label": frames.length ? `${name} takes frames ${shown}` : `${name}: the clip is too short` }, ...marks),
      el("span", { class: "window-text" }, text),
    );
  });
}
