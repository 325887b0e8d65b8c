// A grid of any length: only the tiles one sees exist. Rows have one height, tiles are moved, and a
// tile that left the window is used again.

import { el } from "./dom.js";
import { tap } from "./tiles.js";

const GAP = 10; // pixels, also in style.css
const SPARE_ROWS = 2; // above and below what is seen

export class Grid {
  // `tiles` makes and fills tiles: { minWidth, textHeight, make(), fill(tile, item), clear(tile) }.
  constructor(label, tiles, { opened }) {
    this.tiles = tiles;
    this.opened = opened;
    this.items = [];
    this.free = [];
    this.shown = new Map(); // tiles by index
    this.at = 0; // the cursor: the index on which keys act; always one that is seen
    this.byKeys = false; // whether the keyboard moved it last: a tile that scrolls under a mouse at rest does not take it
    this.body = el("div", { class: "grid-body", role: "listbox", "aria-label": label, tabindex: "-1" });
    this.node = el("div", { class: "grid", onscroll: () => this.schedule() }, this.body);
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("focusin", (event) => this.mark(this.indexOf(event)));
    this.body.addEventListener("pointermove", (event) => this.point(event));
    this.node.addEventListener("wheel", () => (this.byKeys = false), { passive: true });
    new ResizeObserver(() => this.layout()).observe(this.node);
  }

  show(items) {
    const focus = this.items[this.at];
    this.items = items;
    const again = items.indexOf(focus);
    this.at = Math.max(0, again >= 0 ? again : Math.min(this.at, items.length - 1));
    this.layout();
  }

  layout() {
    const width = this.node.clientWidth;
    if (!width) return;
    const { minWidth, textHeight } = this.tiles;
    this.columns = Math.max(width < 500 ? 2 : 1, Math.floor((width - GAP) / (minWidth + GAP)));
    this.tileWidth = Math.floor((width - GAP * (this.columns + 1)) / this.columns);
    this.rowHeight = this.tileWidth + textHeight + GAP;
    const rows = Math.ceil(this.items.length / this.columns);
    this.body.style.height = `${rows * this.rowHeight + GAP}px`;
    this.body.style.setProperty("--tile", `${this.tileWidth}px`);
    this.body.style.setProperty("--tile-height", `${this.tileWidth + textHeight}px`);
    this.recycle(() => true);
    this.draw();
  }

  // Fill again what is seen, for example after a pick.
  refresh() {
    for (const [index, tile] of this.shown) this.tiles.fill(tile, this.items[index]);
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  range() {
    const top = this.node.scrollTop;
    const first = Math.max(0, Math.floor(top / this.rowHeight) - SPARE_ROWS);
    const last = Math.ceil((top + this.node.clientHeight) / this.rowHeight) + SPARE_ROWS;
    return [first * this.columns, Math.min(this.items.length, last * this.columns)];
  }

  draw() {
    if (!this.columns) return;
    const [start, end] = this.range();
    this.recycle((index) => index < start || index >= end);
    for (let index = start; index < end; index++) if (!this.shown.has(index)) this.place(index);
    this.mark(this.nearestSeen(this.at));
  }

  // The item nearest to one, in a row of which half or more is seen.
  nearestSeen(index) {
    const { scrollTop, clientHeight } = this.node;
    const first = Math.ceil(scrollTop / this.rowHeight - 0.5);
    const last = Math.floor((scrollTop + clientHeight) / this.rowHeight - 0.5);
    const row = Math.floor(index / this.columns);
    const seen = Math.max(first, Math.min(last, row));
    return Math.max(0, Math.min(this.items.length - 1, index + (seen - row) * this.columns));
  }

  // Put the cursor on an item.
  mark(index) {
    if (index < 0) return;
    const isAt = (tile, is) => {
      tile?.classList.toggle("is-current", is);
      tile?.setAttribute("tabindex", is ? "0" : "-1");
    };
    isAt(this.shown.get(this.at), false);
    this.at = index;
    isAt(this.shown.get(index), true);
  }

  // The mouse takes the cursor along, and the focus if a tile has it.
  point(event) {
    if (event.pointerType === "touch") return;
    if (event.movementX || event.movementY) this.byKeys = false;
    const index = this.indexOf(event);
    if (this.byKeys || index < 0 || index === this.at) return;
    this.mark(index);
    if (this.body.contains(document.activeElement)) this.shown.get(index).focus({ preventScroll: true });
  }

  recycle(isGone) {
    for (const [index, tile] of this.shown) {
      if (!isGone(index)) continue;
      this.shown.delete(index);
      this.tiles.clear(tile);
      tile.hidden = true;
      this.free.push(tile);
    }
  }

  place(index) {
    const tile = this.free.shift() ?? this.body.appendChild(this.tiles.make());
    const column = index % this.columns;
    const row = (index - column) / this.columns;
    const x = GAP + column * (this.tileWidth + GAP);
    tile.style.transform = `translate(${x}px, ${GAP + row * this.rowHeight}px)`;
    tile.dataset.index = index;
    tile.tabIndex = index === this.at ? 0 : -1;
    tile.classList.toggle("is-current", index === this.at);
    tile.setAttribute("aria-posinset", index + 1);
    tile.setAttribute("aria-setsize", this.items.length);
    this.tiles.fill(tile, this.items[index]);
    tile.hidden = false;
    this.shown.set(index, tile);
  }

  // Scroll to an item and give it the focus.
  focus(index) {
    if (!this.items.length) return;
    this.byKeys = true;
    this.mark(Math.max(0, Math.min(this.items.length - 1, index)));
    const top = Math.floor(this.at / this.columns) * this.rowHeight;
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    const bottom = top + this.rowHeight + GAP - this.node.clientHeight;
    if (bottom > this.node.scrollTop) this.node.scrollTop = bottom;
    this.draw();
    this.shown.get(this.at)?.focus({ preventScroll: true });
  }

  get current() {
    return this.items[this.at];
  }

  indexOf(event) {
    const tile = event.target.closest("[data-index]");
    return tile ? Number(tile.dataset.index) : -1;
  }

  click(event) {
    const index = this.indexOf(event);
    if (index < 0 || event.target.closest("button")) return;
    this.focus(index);
    if (!tap(event, this.shown.get(index))) this.opened(this.items[index]);
  }

  // A key that moves the cursor or opens what it is on; whether it was one.
  key({ key }) {
    const page = this.columns * Math.max(1, Math.floor(this.node.clientHeight / this.rowHeight));
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.columns,
      ArrowUp: -this.columns,
      PageDown: page,
      PageUp: -page,
      Home: -this.at,
      End: this.items.length,
    };
    if (!this.items.length) return false;
    if (key === "Enter") this.opened(this.current);
    else if (key in steps) this.focus(this.at + steps[key]);
    else return false;
    return true;
  }
}
