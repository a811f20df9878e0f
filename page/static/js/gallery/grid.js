// <easel-gallery>: a list of pictures of which only those on screen, and some around them, have elements. It shows and
// navigates; what a click means is told by events:
//   open {name}, select {names}, act {action, name} with action "favourite", "delete" or "details", near-end

import { h } from "../dom.js";
import { layOut, neighbour, rowAt, rowHeight, rowOf } from "./layout.js";
import { Selection } from "./selection.js";

const GAP = 8;
const GAP_NARROW = 4;
const MOST_TILES = 95;
// A tile is two elements: the whole gallery stays below 200, however many pictures there are.
const FAST = 4;
// Pixels per millisecond: pictures that fly past faster are not loaded.
const LONG_PRESS_MS = 450;
const CORNER = 44;
// The mark in the corner of a tile selects it, so it is as large as a finger.

class EaselGallery extends HTMLElement {
  constructor() {
    super();
    this.images = [];
    this.selection = new Selection();
    this.rows = [];
    this.tiles = new Map();
    this.focusName = null;
    this.total = 0;
    this.describe = (image) => image.name;
    this.thumbnail = (image) => image.thumbnail;
    this.inset = 0;
    this.lastTop = 0;
    this.lastAt = 0;
    this.addEventListener("click", (event) => this.clicked(event));
    this.addEventListener("keydown", (event) => this.pressed(event));
    this.addEventListener("focusin", (event) => this.focused(event));
    this.addEventListener("pointerdown", (event) => this.pressBegins(event));
    for (const name of ["pointerup", "pointercancel", "pointermove"]) {
      this.addEventListener(name, (event) => this.pressEnds(event));
    }
    this.addEventListener("contextmenu", (event) => {
      if (this.isTouch) event.preventDefault(); // a long press selects
    });
  }

  connectedCallback() {
    this.setAttribute("role", "listbox");
    this.setAttribute("aria-multiselectable", "true");
    this.scroller = scrollerOf(this);
    this.onScroll = () => this.schedule();
    this.scrollTarget = this.scroller === document.scrollingElement ? window : this.scroller;
    this.scrollTarget.addEventListener("scroll", this.onScroll, { passive: true });
    this.resizing = new ResizeObserver(() => this.resized());
    this.resizing.observe(this);
    if (this.scroller !== document.scrollingElement) this.resizing.observe(this.scroller);
    this.resized();
  }

  disconnectedCallback() {
    this.scrollTarget.removeEventListener("scroll", this.onScroll);
    this.resizing.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.settling);
  }

  // --- what is shown -----------------------------------------------------------------------------

  /** Show these images. `keepsPlace`: what is on screen stays where it is, also if others come or go above it. */
  show(images, { total = images.length, keepsPlace = true } = {}) {
    const anchor = keepsPlace ? this.anchor() : null;
    this.images = images;
    this.total = total;
    this.indexes = new Map(images.map((image, index) => [image.name, index]));
    this.selection.keep((name) => this.indexes.has(name));
    this.layOut();
    if (anchor) this.restore(anchor);
    else if (!keepsPlace) this.scrollToTop();
    this.render();
  }

  get isAtTop() {
    return this.viewTop() < 24;
  }

  scrollToTop() {
    this.scroller.scrollTop = 0;
  }

  resized() {
    const width = this.clientWidth;
    if (width === this.width || !width) {
      this.render();
      return;
    }
    const anchor = this.anchor();
    this.width = width;
    this.layOut();
    if (anchor) this.restore(anchor);
    this.render();
  }

  layOut() {
    if (!this.width) return;
    this.gap = this.width < 480 ? GAP_NARROW : GAP;
    const { rows, height } = layOut(this.images, this.width, this.gap, rowHeight(this.width));
    this.rows = rows;
    this.style.setProperty("height", `${height}px`);
  }

  /** Where the visible part begins, in the window: below what sticks to the top of the view. */
  edge() {
    const edge = this.scroller === document.scrollingElement ? 0 : this.scroller.getBoundingClientRect().top;
    return edge + this.inset;
  }

  /** How far the top of the visible part is below the top of the gallery, in pixels; 0 while all of its top shows. */
  viewTop() {
    return Math.max(0, this.edge() - this.getBoundingClientRect().top);
  }

  viewHeight() {
    return this.scroller.clientHeight;
  }

  /** The first image on screen and how far its row is from the edge; null while the top shows. */
  anchor() {
    const top = this.viewTop();
    const row = this.rows[rowAt(this.rows, top)];
    if (!row || top < 24) return null;
    const image = this.images[row.start];
    return image ? { name: image.name, offset: row.top - top } : null;
  }

  restore({ name, offset }) {
    const index = this.indexes?.get(name);
    if (index === undefined) return;
    const difference = this.rows[rowOf(this.rows, index)].top - offset - this.viewTop();
    if (Math.abs(difference) > 0.5) this.scroller.scrollTop += difference;
  }

  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame((now) => {
      this.frame = 0;
      const top = this.viewTop();
      this.isFast = Math.abs(top - this.lastTop) / Math.max(1, now - this.lastAt) > FAST;
      this.lastTop = top;
      this.lastAt = now;
      this.render();
      clearTimeout(this.settling);
      this.settling = setTimeout(() => this.settled(), 120);
    });
  }

  settled() {
    this.isFast = false;
    this.render();
  }

  /** First and last image (not included) that get an element. */
  range() {
    const top = this.viewTop();
    const height = this.viewHeight();
    let first = rowAt(this.rows, top);
    let last = rowAt(this.rows, top + height);
    const count = () => (this.rows[last]?.end ?? this.images.length) - (this.rows[first]?.start ?? 0);
    const above = rowAt(this.rows, top - height / 2);
    const below = Math.min(this.rows.length - 1, rowAt(this.rows, top + height * 1.5));
    while ((first > above || last < below) && count() < MOST_TILES) {
      if (last < below) last += 1;
      if (first > above && count() < MOST_TILES) first -= 1;
    }
    const start = this.rows[first]?.start ?? 0;
    const end = this.rows[Math.min(last, this.rows.length - 1)]?.end ?? 0;
    return [start, Math.min(end, start + MOST_TILES)];
  }

  render() {
    if (!this.rows.length) {
      for (const name of [...this.tiles.keys()]) this.drop(name);
      return;
    }
    const [start, end] = this.range();
    const wanted = new Set();
    for (let i = start; i < end; i += 1) wanted.add(this.images[i].name);
    for (const [name, tile] of this.tiles) {
      const isNeeded = tile === document.activeElement && this.indexes.has(name);
      if (!wanted.has(name) && !isNeeded) this.drop(name);
    }
    const fallback = this.focusName !== null && this.tiles.has(this.focusName) ? null : this.images[start]?.name;
    let before = null;
    for (let r = rowOf(this.rows, start); r < this.rows.length && this.rows[r].start < end; r += 1) {
      const row = this.rows[r];
      let left = 0;
      for (let i = row.start; i < Math.min(row.end, end); i += 1) {
        const width = row.widths[i - row.start];
        if (i >= start) before = this.place(i, left, row, width, before, fallback);
        left += width + this.gap;
      }
    }
    if (end >= this.images.length - 60) this.tell("near-end");
  }

  place(index, left, row, width, before, fallback) {
    const image = this.images[index];
    let tile = this.tiles.get(image.name);
    if (!tile) {
      tile = this.tile(image);
      this.tiles.set(image.name, tile);
    }
    // In the order of the list, so that a screen reader reads them so.
    const after = before ? before.nextSibling : this.firstChild;
    if (after !== tile && tile !== document.activeElement) this.insertBefore(tile, after);
    const style = tile.style;
    const position = `${left}px ${row.top}px ${width}px ${row.height}px`;
    if (tile.position !== position) {
      tile.position = position;
      style.setProperty("transform", `translate(${left}px, ${row.top}px)`);
      style.setProperty("width", `${width}px`);
      style.setProperty("height", `${row.height}px`);
    }
    this.mark(tile, image, index, fallback);
    const picture = tile.firstChild;
    if (!this.isFast && !picture.hasAttribute("src")) picture.src = this.thumbnail(image);
    return tile;
  }

  tile(image) {
    const picture = h("img", { alt: "", decoding: "async", draggable: "false" });
    picture.addEventListener("load", () => tile.classList.add("is-loaded"));
    picture.addEventListener("error", () => tile.classList.add("is-broken"));
    const tile = h("div", { class: "gallery-tile", role: "option", tabindex: "-1" }, picture);
    tile.dataset.name = image.name;
    return tile;
  }

  mark(tile, image, index, fallback) {
    const isSelected = this.selection.has(image.name);
    const isFocus = image.name === this.focusName || image.name === fallback;
    const state = `${index} ${this.total} ${isSelected} ${image.favourite} ${isFocus} ${image.prompt?.length}`;
    if (tile.state === state) return;
    tile.state = state;
    tile.tabIndex = isFocus ? 0 : -1;
    tile.setAttribute("aria-selected", String(isSelected));
    tile.setAttribute("aria-posinset", String(index + 1));
    tile.setAttribute("aria-setsize", String(Math.max(this.total, this.images.length)));
    tile.setAttribute("aria-label", this.describe(image));
    tile.classList.toggle("is-favourite", Boolean(image.favourite));
  }

  drop(name) {
    const tile = this.tiles.get(name);
    this.tiles.delete(name);
    tile.firstChild.removeAttribute("src"); // ends a load that is not needed any more
    tile.remove();
  }

  // --- what the reader does ----------------------------------------------------------------------

  tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  nameAt(event) {
    return event.target.closest?.(".gallery-tile")?.dataset.name ?? null;
  }

  order() {
    return this.images.map((image) => image.name);
  }

  clicked(event) {
    const name = this.nameAt(event);
    if (name === null) return;
    if (this.wasLongPress) {
      this.wasLongPress = false;
      return;
    }
    if (event.shiftKey) this.selection.extend(name, this.order());
    else if (event.ctrlKey || event.metaKey || this.selection.size || isCorner(event)) this.selection.toggle(name);
    else {
      this.focusName = name;
      this.tell("open", { name });
      return;
    }
    this.selectionChanged(name);
  }

  selectionChanged(name = this.focusName) {
    this.focusName = name;
    this.classList.toggle("is-selecting", this.selection.size > 0);
    this.render();
    this.tell("select", { names: [...this.selection.names] });
  }

  clearSelection() {
    this.selection.clear();
    this.selectionChanged();
  }

  pressBegins(event) {
    const name = this.nameAt(event);
    this.isTouch = event.pointerType !== "mouse";
    this.wasLongPress = false;
    if (name === null || !this.isTouch) return;
    this.pressAt = [event.clientX, event.clientY];
    clearTimeout(this.press);
    this.press = setTimeout(() => {
      this.wasLongPress = true;
      this.selection.toggle(name);
      this.selectionChanged(name);
    }, LONG_PRESS_MS);
  }

  pressEnds(event) {
    if (event.type === "pointermove" && this.pressAt) {
      const [x, y] = this.pressAt;
      if (Math.hypot(event.clientX - x, event.clientY - y) < 10) return;
    }
    clearTimeout(this.press);
  }

  focused(event) {
    const name = this.nameAt(event);
    if (name === null || name === this.focusName) return;
    this.focusName = name;
    this.render();
  }

  /** Move the focus to image `index` and bring it on screen. */
  focusAt(index) {
    const image = this.images[Math.min(Math.max(0, index), this.images.length - 1)];
    if (!image) return;
    this.focusName = image.name;
    this.bringIntoView(this.indexes.get(image.name));
    this.render();
    this.tiles.get(image.name)?.focus({ preventScroll: true });
    this.render();
  }

  bringIntoView(index) {
    const row = this.rows[rowOf(this.rows, index)];
    const top = this.edge() - this.getBoundingClientRect().top;
    const bottom = top - this.inset + this.viewHeight();
    if (row.top < top) this.scroller.scrollTop += row.top - top - this.gap;
    else if (row.top + row.height > bottom) this.scroller.scrollTop += row.top + row.height - bottom + this.gap;
  }

  pressed(event) {
    const index = this.indexes?.get(this.focusName ?? this.nameAt(event) ?? "");
    if (index === undefined || event.altKey) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") {
      event.preventDefault();
      this.selection.all(this.order());
      this.selectionChanged();
      return;
    }
    if (event.ctrlKey || event.metaKey) return;
    const target = this.targetOf(event.key, index);
    if (target !== null) {
      event.preventDefault();
      if (event.shiftKey) {
        if (this.selection.anchor === null) this.selection.toggle(this.images[index].name);
        const to = Math.min(Math.max(0, target), this.images.length - 1);
        this.selection.extend(this.images[to].name, this.order());
        this.selectionChanged(this.images[to].name);
      }
      this.focusAt(target);
      return;
    }
    this.command(event, this.images[index].name);
  }

  targetOf(key, index) {
    const rows = Math.max(1, Math.floor(this.viewHeight() / (this.rows[0].height + this.gap)) - 1);
    const moves = {
      ArrowLeft: () => index - (isRightToLeft(this) ? -1 : 1),
      ArrowRight: () => index + (isRightToLeft(this) ? -1 : 1),
      ArrowUp: () => neighbour(this.rows, index, -1, this.gap),
      ArrowDown: () => neighbour(this.rows, index, 1, this.gap),
      PageUp: () => neighbour(this.rows, index, -Math.min(rows, rowOf(this.rows, index)), this.gap),
      PageDown: () =>
        neighbour(this.rows, index, Math.min(rows, this.rows.length - 1 - rowOf(this.rows, index)), this.gap),
      Home: () => 0,
      End: () => this.images.length - 1,
    };
    return moves[key]?.() ?? null;
  }

  command(event, name) {
    if (event.key === "Enter") this.tell("open", { name });
    else if (event.key === " ") {
      if (event.shiftKey) this.selection.extend(name, this.order());
      else this.selection.toggle(name);
      this.selectionChanged(name);
    } else if (event.key === "Escape" && this.selection.size) this.clearSelection();
    else if (event.key === "f") this.tell("act", { action: "favourite", name });
    else if (event.key === "i") this.tell("act", { action: "details", name });
    else if (event.key === "Delete" || event.key === "Backspace") this.tell("act", { action: "delete", name });
    else return;
    event.preventDefault();
  }
}

function isCorner(event) {
  if (event.detail === 0 || event.pointerType === "touch") return false;
  const box = event.target.closest(".gallery-tile").getBoundingClientRect();
  return event.clientX - box.left < CORNER && event.clientY - box.top < CORNER;
}

function isRightToLeft(element) {
  return getComputedStyle(element).direction === "rtl";
}

function scrollerOf(element) {
  for (let parent = element.parentElement; parent; parent = parent.parentElement) {
    const { overflowY } = getComputedStyle(parent);
    if (overflowY === "auto" || overflowY === "scroll") return parent;
  }
  return document.scrollingElement;
}

customElements.define("easel-gallery", EaselGallery);
