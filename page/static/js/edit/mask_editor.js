// `<easel-mask-editor>`: paints where an image is to be drawn anew. Set `image` ({url, width, height}) and `buffer` (a
// MaskBuffer of the image's size, which belongs to the caller and outlives the element). Event `change` after each step.

import { h, icon } from "../dom.js";
import { number, percent, t } from "../text.js";
import { announce } from "../toasts.js";
import "./icons.js";
import { drawMask, rgbOf } from "./mask_overlay.js";
import { RectangleTool } from "./rectangle_tool.js";
import { Viewport } from "./viewport.js";

const TOOLS = ["brush", "eraser", "rectangle", "hand"];
const TOOL_ICONS = { brush: "brush", eraser: "erase", rectangle: "rectangle", hand: "hand" };
const TOOL_KEYS = { b: "brush", e: "eraser", r: "rectangle", h: "hand" };
const ERASER_BUTTON = 32;
const MIDDLE_BUTTON = 1;
const ZOOM_STEP = 1.25;
const PAN_STEP = 40;

export class MaskEditor extends HTMLElement {
  constructor() {
    super();
    this.tool = "brush";
    this._painting = "brush";
    this._size = 0;
    this._softness = 0.3;
    this._pointers = new Map();
    this._action = null;
    this._dirty = null;
  }

  /** {url, width, height}; a new image needs a new `buffer`, set right after it. */
  set image(image) {
    this._image = image;
    this.viewport = new Viewport(image.width, image.height);
    // About a twelfth of the picture: large enough to mask a face with a few strokes.
    this._size = Math.max(8, Math.round(Math.min(image.width, image.height) / 12));
    if (this._picture) this._showImage();
  }

  get image() {
    return this._image;
  }

  set buffer(buffer) {
    this._stopAction();
    this._buffer = buffer;
    this._redraw();
    this._showState();
  }

  get buffer() {
    return this._buffer;
  }

  connectedCallback() {
    if (!this._view) this._build();
    this._observer = new ResizeObserver(() => this._fitView());
    this._observer.observe(this._view);
    this._showImage();
  }

  disconnectedCallback() {
    this._observer.disconnect();
    // A window that turns or gets wide puts the editor elsewhere: what was painted stays.
    if (this._action?.kind === "stroke") this._endStroke();
    this._stopAction();
    this._pointers.clear();
  }

  // -- building --------------------------------------------------------------------------------------------------

  _build() {
    this.classList.add("mask-editor");
    this._picture = h("img", { class: "mask-picture", alt: "", draggable: "false" });
    this._canvas = h("canvas", { class: "mask-overlay", "aria-hidden": "true" });
    this._cursor = h("div", { class: "mask-cursor", "aria-hidden": "true", hidden: true });
    this._rectangle = h("div", { class: "mask-rectangle", "aria-hidden": "true", hidden: true });
    this._view = h(
      "div",
      {
        class: "mask-view",
        tabindex: "0",
        role: "application",
        "aria-roledescription": t("edit.mask.role"),
        "aria-label": t("edit.mask.label"),
      },
      this._picture,
      this._canvas,
      this._rectangle,
      this._cursor,
    );
    this._status = h("p", { class: "mask-status" });
    this._view.setAttribute("aria-describedby", (this._status.id = `mask-status-${(counter += 1)}`));
    this.append(this._toolbar(), this._view, this._sliders(), this._status);
    this._rectangles = new RectangleTool(this);
    this._listen();
  }

  _toolbar() {
    this._tools = Object.fromEntries(
      TOOLS.map((tool) => [tool, toolButton(TOOL_ICONS[tool], `edit.mask.${tool}`, () => this.chooseTool(tool))]),
    );
    this._buttons = {
      undo: toolButton("undo", "edit.mask.undo", () => this.undo()),
      redo: toolButton("redo", "edit.mask.redo", () => this.redo()),
      invert: toolButton("invert", "edit.mask.invert", () => this._step((buffer) => buffer.invert())),
      fill: toolButton("fill", "edit.mask.fill", () => this._step((buffer) => buffer.fill(255))),
      clear: toolButton("delete", "edit.mask.clear", () => this._step((buffer) => buffer.fill(0))),
    };
    this._zooms = {
      out: toolButton("zoomOut", "edit.mask.zoom_out", () => this._zoom(1 / ZOOM_STEP)),
      fit: toolButton("fit", "edit.mask.zoom_fit", () => this._fit()),
      in: toolButton("zoomIn", "edit.mask.zoom_in", () => this._zoom(ZOOM_STEP)),
      large: toolButton("fullscreen", "edit.mask.enlarge", () => this.enlarge(!this._isLarge)),
    };
    return h(
      "div",
      { class: "mask-toolbar", role: "toolbar", "aria-label": t("edit.mask.toolbar") },
      h("div", { class: "tool-group" }, ...Object.values(this._tools)),
      h("div", { class: "tool-group" }, ...Object.values(this._buttons)),
      h("div", { class: "tool-group" }, ...Object.values(this._zooms)),
    );
  }

  _sliders() {
    this._sizeSlider = slider("edit.mask.size", 0, 1000, 1);
    this._softSlider = slider("edit.mask.softness", 0, 100, 5);
    this._sizeSlider.input.addEventListener("input", () => {
      this._size = sizeAt(Number(this._sizeSlider.input.value) / 1000, this._largestSize);
      this._showSliders();
      this._showCursorInMiddle();
    });
    this._softSlider.input.addEventListener("input", () => {
      this._softness = Number(this._softSlider.input.value) / 100;
      this._showSliders();
    });
    return h("div", { class: "mask-sliders" }, this._sizeSlider.row, this._softSlider.row);
  }

  _listen() {
    const view = this._view;
    view.addEventListener("pointerdown", (event) => this._onDown(event));
    view.addEventListener("pointermove", (event) => this._onMove(event));
    view.addEventListener("pointerup", (event) => this._onUp(event));
    view.addEventListener("pointercancel", (event) => this._onCancel(event));
    view.addEventListener("pointerleave", () => this._hideCursor());
    view.addEventListener("wheel", (event) => this._onWheel(event), { passive: false });
    view.addEventListener("contextmenu", (event) => event.preventDefault());
    view.addEventListener("keydown", (event) => this._onKey(event));
    view.addEventListener("keyup", (event) => event.key === " " && this._holdHand(false));
    view.addEventListener("blur", () => this._holdHand(false));
    this.addEventListener("keydown", (event) => this._onShortcut(event));
  }

  // -- tools -----------------------------------------------------------------------------------------------------

  chooseTool(tool) {
    this._stopAction();
    this.tool = tool;
    if (tool === "brush" || tool === "eraser") this._painting = tool;
    this._rectangles.show(tool === "rectangle" && this._hasFocus());
    this._showState();
  }

  /** Whether new strokes and rectangles take away from the mask. */
  get isErasing() {
    return this._painting === "eraser";
  }

  undo() {
    this._step((buffer) => buffer.undo());
  }

  redo() {
    this._step((buffer) => buffer.redo());
  }

  /** Fill `box` as one step, or clear it while erasing. */
  fillBox(box) {
    this._step((buffer) => buffer.fill(this.isErasing ? 0 : 255, box));
  }

  /** Use the whole window, or go back into the form. */
  enlarge(isLarge) {
    this._isLarge = isLarge;
    this.classList.toggle("is-large", isLarge);
    this._zooms.large.setAttribute("aria-pressed", String(isLarge));
    this._view.focus();
  }

  _step(change) {
    if (!this._buffer) return;
    this._stopAction();
    const box = change(this._buffer);
    if (box) this._changed(box);
  }

  _changed(box) {
    this._redraw(box);
    this._showState();
    this.dispatchEvent(new CustomEvent("change"));
  }

  // -- pointers --------------------------------------------------------------------------------------------------

  _onDown(event) {
    if (!this._buffer || this._isPalm(event)) return;
    event.preventDefault();
    this._view.focus({ preventScroll: true });
    this._view.setPointerCapture(event.pointerId);
    this._pointers.set(event.pointerId, this._pointOf(event));
    if (event.pointerType === "touch" && this._pointers.size === 2) return this._startPinch();
    if (this._pointers.size > 1) return;
    if (event.button === MIDDLE_BUTTON || this.tool === "hand" || this._isHandHeld) {
      this._action = { kind: "pan" };
    } else if (event.button === 0 || event.buttons & ERASER_BUTTON) {
      this._start(event);
    }
  }

  _start(event) {
    const point = this._pointOf(event);
    if (this.tool === "rectangle") {
      this._action = { kind: "rectangle", from: this.viewport.toImage(point.x, point.y) };
      return;
    }
    this._action = { kind: "stroke" };
    const erase = this._painting === "eraser" || (event.buttons & ERASER_BUTTON) !== 0;
    this._buffer.begin({ erase, softness: this._softness });
    this._paint(event);
  }

  _onMove(event) {
    const point = this._pointOf(event);
    this._moveCursor(event, point);
    const before = this._pointers.get(event.pointerId);
    if (!before) return;
    this._pointers.set(event.pointerId, point);
    if (this._action?.kind === "pinch") return this._pinch();
    if (this._action?.kind === "pan") return this._pan(point.x - before.x, point.y - before.y);
    if (this._action?.kind === "rectangle") {
      this._rectangles.between(this._action.from, this.viewport.toImage(point.x, point.y));
    }
    if (this._action?.kind === "stroke") {
      // Between two frames a pen reports many points; without them a fast stroke would have corners.
      const events = event.getCoalescedEvents?.() ?? [];
      for (const moved of events.length ? events : [event]) this._paint(moved);
    }
  }

  _onUp(event) {
    if (!this._pointers.delete(event.pointerId)) return;
    const action = this._action;
    if (action?.kind === "pinch") {
      // The finger that stays down does not paint: lifting two fingers at once is never quite at once.
      this._action = this._pointers.size ? { kind: "none" } : null;
      return;
    }
    this._action = this._pointers.size ? action : null;
    if (action?.kind === "stroke") this._endStroke();
    if (action?.kind === "rectangle") this._rectangles.apply();
  }

  _endStroke() {
    this._action = null;
    this._buffer.end();
    this._showState();
    this.dispatchEvent(new CustomEvent("change"));
  }

  _onCancel(event) {
    if (this._pointers.delete(event.pointerId)) this._stopAction();
  }

  /** A hand that rests on the screen beside a pen. */
  _isPalm(event) {
    if (event.pointerType === "pen") this._penSeen = event.timeStamp;
    return event.pointerType === "touch" && event.timeStamp - (this._penSeen ?? -Infinity) < 1000;
  }

  _paint(event) {
    const screen = this._pointOf(event);
    const { x, y } = this.viewport.toImage(screen.x, screen.y);
    const box = this._buffer.paint(x, y, (this._size / 2) * pressureOf(event));
    if (box) this._redraw(box);
  }

  _startPinch() {
    this._stopAction();
    this._action = { kind: "pinch", last: this._spread() };
  }

  _pinch() {
    if (this._pointers.size < 2) return;
    const now = this._spread();
    const { last } = this._action;
    this._action.last = now;
    this.viewport.pan(now.x - last.x, now.y - last.y);
    this._zoom(now.distance / Math.max(1, last.distance), now.x, now.y);
  }

  /** The middle of the first two fingers and how far they are apart. */
  _spread() {
    const [a, b] = [...this._pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
  }

  /** End what the pointer does without a trace: a stroke that has begun is taken back. */
  _stopAction() {
    const action = this._action;
    this._action = null;
    const box = action?.kind === "stroke" ? this._buffer.cancel() : null;
    if (box) this._redraw(box);
    if (action?.kind === "rectangle") this._rectangles.show(false);
  }

  _onWheel(event) {
    // Otherwise the wheel scrolls the page, until the picture has been clicked.
    if (!event.ctrlKey && !event.metaKey && !this._hasFocus()) return;
    event.preventDefault();
    const { x, y } = this._pointOf(event);
    if (event.shiftKey) return this._pan(-event.deltaY - event.deltaX, 0);
    this._zoom(Math.exp(-event.deltaY / (event.deltaMode ? 20 : 400)), x, y);
  }

  _pointOf(event) {
    const box = this._view.getBoundingClientRect();
    return { x: event.clientX - box.left - this._view.clientLeft, y: event.clientY - box.top - this._view.clientTop };
  }

  // -- keys ------------------------------------------------------------------------------------------------------

  _onShortcut(event) {
    const isCommand = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (isCommand && (key === "z" || key === "y")) {
      event.preventDefault();
      if (key === "y" || event.shiftKey) this.redo();
      else this.undo();
    } else if (event.key === "Escape" && this._isLarge) {
      event.preventDefault();
      event.stopPropagation();
      this.enlarge(false);
    }
  }

  _onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.tool === "rectangle" && this._rectangles.onKey(event)) return event.preventDefault();
    const action = this._keyAction(event);
    if (!action) return;
    event.preventDefault();
    action();
  }

  _keyAction({ key, shiftKey }) {
    const tool = TOOL_KEYS[key.toLowerCase()];
    if (tool) return () => this.chooseTool(tool);
    return {
      "[": () => this._resizeBrush(1 / 1.2),
      "]": () => this._resizeBrush(1.2),
      "{": () => this._soften(-0.1),
      "}": () => this._soften(0.1),
      i: () => this._step((buffer) => buffer.invert()),
      f: () => this._step((buffer) => buffer.fill(255)),
      Delete: () => this._step((buffer) => buffer.fill(0)),
      Backspace: () => this._step((buffer) => buffer.fill(0)),
      "+": () => this._zoom(ZOOM_STEP),
      "=": () => this._zoom(ZOOM_STEP),
      "-": () => this._zoom(1 / ZOOM_STEP),
      0: () => this._fit(),
      " ": () => this._holdHand(true),
      ArrowLeft: () => this._pan(PAN_STEP, 0),
      ArrowRight: () => this._pan(-PAN_STEP, 0),
      ArrowUp: () => this._pan(0, PAN_STEP),
      ArrowDown: () => this._pan(0, -PAN_STEP),
    }[shiftKey && key.length > 1 ? "" : key];
  }

  _resizeBrush(factor) {
    this._size = Math.min(this._largestSize, Math.max(1, Math.round(this._size * factor + Math.sign(factor - 1))));
    this._showSliders();
    this._showCursorInMiddle();
  }

  _soften(difference) {
    this._softness = Math.min(1, Math.max(0, Math.round((this._softness + difference) * 20) / 20));
    this._showSliders();
  }

  _holdHand(isHeld) {
    this._isHandHeld = isHeld;
    this._view.classList.toggle("is-panning", isHeld || this.tool === "hand");
  }

  // -- showing ---------------------------------------------------------------------------------------------------

  get _largestSize() {
    return Math.max(16, Math.max(this._image.width, this._image.height) / 3);
  }

  _hasFocus() {
    return document.activeElement === this._view;
  }

  _showImage() {
    if (!this._image) return;
    this._picture.src = this._image.url;
    this._picture.width = this._image.width;
    this._picture.height = this._image.height;
    this._view.style.setProperty("--mask-ratio", `${this._image.width} / ${this._image.height}`);
    this._fitView();
    this._showSliders();
    this._showState();
  }

  _fitView() {
    const { clientWidth, clientHeight } = this._view;
    if (!this.viewport || !clientWidth || !clientHeight) return;
    this.viewport.resize(clientWidth, clientHeight);
    this._ratio = Math.min(2, window.devicePixelRatio || 1);
    this._canvas.width = Math.round(clientWidth * this._ratio);
    this._canvas.height = Math.round(clientHeight * this._ratio);
    this._place();
    this._draw(); // in this frame: a canvas with a new size is empty
  }

  _zoom(factor, x, y) {
    this.viewport.zoom(factor, x, y);
    this._place();
  }

  _fit() {
    this.viewport.fit();
    this._place();
  }

  _pan(dx, dy) {
    this.viewport.pan(dx, dy);
    this._place();
  }

  _place() {
    const { x, y, scale } = this.viewport;
    this._picture.style.setProperty("transform", `translate(${x}px, ${y}px) scale(${scale})`);
    this._picture.classList.toggle("is-magnified", scale * (this._ratio ?? 1) >= 4);
    this._zooms.out.disabled = this._zooms.fit.disabled = this.viewport.isFitted;
    this._rectangles?.place();
    this._redraw();
  }

  /** Draw `box` of the mask (all of it without one) in the next frame. */
  _redraw(box = null) {
    if (!this._dirty && this.isConnected) requestAnimationFrame(() => this._draw());
    if (!box || this._dirty?.all) this._dirty = { all: true };
    else this._dirty = { boxes: [...(this._dirty?.boxes ?? []), box] };
  }

  _draw() {
    const dirty = this._dirty ?? { all: true };
    this._dirty = null;
    if (!this._buffer || !this._canvas.width) return;
    this._colour ??= rgbOf(getComputedStyle(this).getPropertyValue("--mask-colour").trim() || "#e5387a");
    for (const box of dirty.all ? [null] : dirty.boxes) {
      drawMask(this._canvas, this._buffer, this.viewport, this._ratio, this._colour, box);
    }
  }

  _showState() {
    if (!this._tools || !this._buffer) return;
    for (const [tool, button] of Object.entries(this._tools)) {
      const isPressed = tool === this.tool || (this.tool === "rectangle" && tool === "eraser" && this.isErasing);
      button.setAttribute("aria-pressed", String(isPressed));
    }
    this._view.dataset.tool = this.tool;
    this._view.classList.toggle("is-panning", this.tool === "hand");
    this._buttons.undo.disabled = !this._buffer.canUndo;
    this._buttons.redo.disabled = !this._buffer.canRedo;
    const share = this._buffer.coverage;
    this._buttons.clear.disabled = share === 0;
    const covered = number(share * 100, share < 0.1 ? 1 : 0);
    this._status.textContent = share === 0 ? t("edit.mask.empty") : t("edit.mask.covers", { share: covered });
  }

  _showSliders() {
    const size = Math.round(this._size);
    this._sizeSlider.show(placeOf(this._size, this._largestSize) * 1000, t("edit.pixels", { count: size }));
    this._softSlider.show(this._softness * 100, percent(this._softness));
  }

  _moveCursor(event, point) {
    const isBrush = this.tool === "brush" || this.tool === "eraser";
    this._cursor.hidden = !isBrush || this._isHandHeld || event.pointerType === "touch";
    if (!this._cursor.hidden) this._placeCursor(point.x, point.y);
  }

  _showCursorInMiddle() {
    this._cursor.hidden = false;
    this._placeCursor(this._view.clientWidth / 2, this._view.clientHeight / 2);
    clearTimeout(this._cursorTimer);
    this._cursorTimer = setTimeout(() => this._hideCursor(), 900);
  }

  _placeCursor(x, y) {
    const size = Math.max(4, this._size * this.viewport.scale);
    this._cursor.style.setProperty("width", `${size}px`);
    this._cursor.style.setProperty("height", `${size}px`);
    this._cursor.style.setProperty("transform", `translate(${x - size / 2}px, ${y - size / 2}px)`);
  }

  _hideCursor() {
    this._cursor.hidden = true;
  }

  /** Say `text` to screen readers. */
  announce(text) {
    announce(text);
  }
}

let counter = 0;

function toolButton(name, key, onClick) {
  const label = t(key);
  return h("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick: onClick }, icon(name));
}

function slider(key, min, max, step) {
  const input = h("input", { type: "range", min: String(min), max: String(max), step: String(step) });
  const output = h("output", { class: "slider-value" });
  const row = h("label", { class: "slider-row" }, h("span", {}, t(key)), input, output);
  const show = (value, text) => {
    input.value = String(Math.round(value));
    input.setAttribute("aria-valuetext", text);
    output.textContent = text;
  };
  return { row, input, show };
}

/** Sizes grow by the same factor from place to place, so that small ones can be chosen exactly. */
function sizeAt(place, largest) {
  return Math.max(1, Math.round(largest ** place));
}

function placeOf(size, largest) {
  return Math.log(Math.max(1, size)) / Math.log(largest);
}

/** A pen's pressure makes the brush thinner or thicker; a mouse and most fingers have none. */
function pressureOf(event) {
  return event.pointerType === "pen" && event.pressure > 0 ? 0.2 + 1.2 * event.pressure : 1;
}

customElements.define("easel-mask-editor", MaskEditor);
