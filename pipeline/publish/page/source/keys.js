// The keyboard: every key does what a button does, and none acts while one writes.

import { el } from "./dom.js";

export const KEYS = [
  ["K", "keep the clip (in the grid, the framed one); again takes it back"],
  ["X", "reject it; again takes it back"],
  ["U", "undo the last pick"],
  ["N  J", "next clip"],
  ["P", "previous clip"],
  ["Space", "play, or pause"],
  ["\u2190 \u2192", "in the grid: to the side; in a clip: a frame back or on (with Shift: 16)"],
  ["\u2191 \u2193", "in the grid: a row up or down"],
  ["Enter", "open the clip"],
  ["Escape", "close"],
  ["G  F  S", "grid, funnel, sources"],
  ["/", "search"],
  ["A", "play all clips that are seen"],
  ["?", "this list"],
];

export function helpDialog() {
  const close = el("button", { type: "button", class: "ghost close", "aria-label": "Close", onclick: () => dialog.close() }, "\u2715");
  const rows = KEYS.map(([key, what]) => el("tr", {}, el("th", { scope: "row" }, key.split("  ").map((one) => el("kbd", {}, one))), el("td", {}, what)));
  const dialog = el("dialog", { class: "help", "aria-label": "Keys" }, el("header", { class: "clip-head" }, el("h2", {}, "Keys"), close), el("table", {}, el("tbody", {}, rows)));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

// `actions` are named by key, in capitals for letters.
export function listen(actions) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const isWriting = event.target.closest?.("input:not([type=range], [type=checkbox]), textarea, select");
    if (isWriting && event.key !== "Escape") return;
    const isControl = event.target.closest?.("button, a, summary, input, [role=slider]");
    if (isControl && (event.key === " " || event.key === "Enter")) return;
    const name = event.key.length === 1 ? event.key.toUpperCase() : event.key;
    if (actions[name]?.(event) !== undefined) event.preventDefault();
  });
}
