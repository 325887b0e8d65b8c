// A grid of any length: only the tiles one sees exist. Rows have one height, tiles are moved, and a
// tile that left the window is used again.

import { el } from "./dom.js";
import { tap } from "./tiles.js";

const GAP = 10; // pixels, also in style.css
const SPARE_ROWS = 2; // above and below what is seen

export class Grid {
  // `tiles` makes and fills tiles: { minWidth, textHeight, make(), fill(tile, item), clear(tile) }.
  constructor(label, tiles, { opened, focused = () => {} }) {
    this.tiles = tiles;
    this.opened = opened;
    this.focused = focused;
    this.items = [];
    this.free = [];
    this.shown = new Map(); // tiles by index
    this.at = 0; // the index that has the focus
    this.body = el("div", { class: "grid-body", role: "listbox", "aria-label": label, tabindex: "-1" });
    this.node = el("div", { class: "grid", onscroll: () => this.schedule() }, this.body);
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => this.click(event));
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
    tile.setAttribute("aria-posinset", index + 1);
    tile.setAttribute("aria-setsize", this.items.length);
    this.tiles.fill(tile, this.items[index]);
    tile.hidden = false;
    this.shown.set(index, tile);
  }

  // Scroll to an item and give it the focus.
  focus(index, isQuiet = false) {
    if (!this.items.length) return;
    this.shown.get(this.at)?.setAttribute("tabindex", "-1");
    this.at = Math.max(0, Math.min(this.items.length - 1, index));
    const top = Math.floor(this.at / this.columns) * this.rowHeight;
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    const bottom = top + this.rowHeight + GAP - this.node.clientHeight;
    if (bottom > this.node.scrollTop) this.node.scrollTop = bottom;
    this.draw();
    const tile = this.shown.get(this.at);
    tile?.setAttribute("tabindex", "0");
    if (!isQuiet) tile?.focus({ preventScroll: true });
    this.focused(this.items[this.at]);
  }

  get current() {
    return this.items[this.at];
  }

  tileOf(item) {
    return this.shown.get(this.items.indexOf(item));
  }

  indexOf(event) {
    const tile = event.target.closest("[data-index]");
    return tile ? Number(tile.dataset.index) : -1;
  }

  click(event) {
    const index = this.indexOf(event);
    if (index < 0 || event.target.closest("button")) return;
    this.focus(index);
    if (!tap(this.shown.get(index))) this.opened(this.items[index]);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
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
    if (event.key in steps) this.focus(this.at + steps[event.key]);
    else if (event.key === "Enter" && this.indexOf(event) >= 0) this.opened(this.current);
    else return;
    event.preventDefault();
  }
}
