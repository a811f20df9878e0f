// `<easel-outpaint-frame>`: how far an image is extended on each side, by dragging, by keys or as numbers. Set `image`
// ({url, width, height}) and `rule` (a model's `size`: min, max, max_pixels); read `sides` and `problem`. Event `change`;
// event `shrink` ({width, height}) if the user wants the image itself scaled down.

import { h, icon, replaceChildren } from "../dom.js";
import { t } from "../text.js";
import { fittingIn, parseSize, sidesForRatio, sizeProblem } from "./outpaint_size.js";
import "./icons.js";

const SIDES = ["top", "left", "right", "bottom"];
const RATIOS = ["1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16"];
const KEY_STEP = 16;
const LARGE_STEP = 128;
/** The room around the image in which its frame is dragged, as a share of the view. */
const ROOM = 0.22;

export class OutpaintFrame extends HTMLElement {
  constructor() {
    super();
    this._sides = { left: 0, top: 0, right: 0, bottom: 0 };
  }

  set image(image) {
    const isSame = this._image?.width === image.width && this._image?.height === image.height;
    this._image = image;
    if (!isSame) this._sides = { left: 0, top: 0, right: 0, bottom: 0 };
    if (this._view) this._showImage();
  }

  set rule(rule) {
    this._rule = { min: parseSize(rule.min), max: parseSize(rule.max), maxPixels: rule.max_pixels ?? Infinity };
    if (this._view) this._show();
  }

  /** {left, top, right, bottom} in pixels of the image. */
  get sides() {
    return { ...this._sides };
  }

  set sides(sides) {
    this._sides = Object.fromEntries(SIDES.map((side) => [side, Math.max(0, Math.round(Number(sides[side]) || 0))]));
    if (this._view) this._show();
    this.dispatchEvent(new CustomEvent("change"));
  }

  get hasSides() {
    return SIDES.some((side) => this._sides[side] > 0);
  }

  /** Why the picture cannot be drawn at the extended size, in words, or null. */
  get problem() {
    const found = this._image && this._rule && this.hasSides ? sizeProblem(this._size, this._rule) : null;
    return found && t(`edit.outpaint.${found.code}`, plain(found.values));
  }

  get _size() {
    const { left, top, right, bottom } = this._sides;
    return { width: this._image.width + left + right, height: this._image.height + top + bottom };
  }

  connectedCallback() {
    if (!this._view) this._build();
    this._observer = new ResizeObserver(() => this._layOut());
    this._observer.observe(this._view);
    if (this._image) this._showImage();
  }

  disconnectedCallback() {
    this._observer.disconnect();
  }

  _build() {
    this.classList.add("outpaint-frame");
    this._picture = h("img", { alt: t("edit.outpaint.picture"), draggable: "false" });
    this._frame = h("div", { class: "outpaint-canvas" }, this._picture);
    this._handles = Object.fromEntries(SIDES.map((side) => [side, this._handle(side)]));
    this._frame.append(...Object.values(this._handles));
    this._view = h("div", { class: "outpaint-view" }, this._frame);
    this._numbers = Object.fromEntries(SIDES.map((side) => [side, this._number(side)]));
    this._ratios = RATIOS.map((ratio) =>
      h("button", { type: "button", class: "chip", onclick: () => this._useRatio(ratio) }, ratio),
    );
    this._status = h("p", { class: "outpaint-status", role: "status" });
    this.append(
      this._view,
      h("div", { class: "outpaint-numbers" }, ...SIDES.map((side) => this._numbers[side].row)),
      h(
        "div",
        { class: "chips", role: "group", "aria-label": t("edit.outpaint.ratios") },
        h("span", { class: "chips-label", "aria-hidden": "true" }, t("edit.outpaint.ratios")),
        ...this._ratios,
        (this._reset = h("button", { type: "button", class: "chip", onclick: () => (this.sides = {}) })),
      ),
      this._status,
    );
    this._reset.textContent = t("edit.outpaint.reset");
  }

  _handle(side) {
    const handle = h("div", {
      class: `outpaint-handle is-${side}`,
      role: "slider",
      tabindex: "0",
      "aria-label": t(`edit.outpaint.${side}`),
      "aria-orientation": side === "left" || side === "right" ? "horizontal" : "vertical",
      "aria-valuemin": "0",
    });
    handle.addEventListener("keydown", (event) => this._onKey(event, side));
    handle.addEventListener("pointerdown", (event) => this._onDown(event, side, handle));
    return handle;
  }

  _number(side) {
    const input = h("input", { type: "number", class: "input", min: "0", step: "1", inputmode: "numeric" });
    input.addEventListener("change", () => this._set(side, Number(input.value)));
    return { input, row: h("label", { class: `field is-${side}` }, h("span", {}, t(`edit.outpaint.${side}`)), input) };
  }

  // -- changing --------------------------------------------------------------------------------------------------

  _set(side, pixels) {
    this.sides = { ...this._sides, [side]: Math.min(this._most, Math.max(0, Number.isFinite(pixels) ? pixels : 0)) };
  }

  /** How far one side goes. More than the model draws is possible: the image itself can then be scaled down. */
  get _most() {
    return 2 * Math.max(this._image.width, this._image.height);
  }

  _onKey(event, side) {
    const outwards = { left: "ArrowLeft", right: "ArrowRight", top: "ArrowUp", bottom: "ArrowDown" }[side];
    const inwards = { left: "ArrowRight", right: "ArrowLeft", top: "ArrowDown", bottom: "ArrowUp" }[side];
    const step = event.shiftKey ? LARGE_STEP : KEY_STEP;
    const target = {
      [outwards]: this._sides[side] + step,
      [inwards]: this._sides[side] - step,
      PageUp: this._sides[side] + LARGE_STEP,
      PageDown: this._sides[side] - LARGE_STEP,
      Home: 0,
      End: this._most,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this._set(side, target);
  }

  _onDown(event, side, handle) {
    if (event.button) return;
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    const start = { x: event.clientX, y: event.clientY, pixels: this._sides[side] };
    // The scale stays while a side is dragged, or the picture would run away from the pointer.
    this._frozenScale = this._scale;
    const onMove = ({ clientX, clientY }) => {
      const moved = { left: start.x - clientX, right: clientX - start.x, top: start.y - clientY, bottom: clientY - start.y };
      this._set(side, Math.round((start.pixels + moved[side] / this._frozenScale) / 8) * 8);
    };
    const onEnd = () => {
      handle.removeEventListener("pointermove", onMove);
      this._frozenScale = null;
      this._layOut();
    };
    handle.addEventListener("pointermove", onMove);
    handle.addEventListener("lostpointercapture", onEnd, { once: true });
  }

  _useRatio(ratio) {
    this.sides = sidesForRatio(this._image, ratio.split(":").map(Number));
  }

  // -- showing ---------------------------------------------------------------------------------------------------

  _showImage() {
    this._picture.src = this._image.url;
    this._show();
  }

  _show() {
    if (!this._image) return;
    for (const side of SIDES) {
      const { input } = this._numbers[side];
      input.value = String(this._sides[side]);
      this._handles[side].setAttribute("aria-valuenow", String(this._sides[side]));
      this._handles[side].setAttribute("aria-valuetext", t("edit.pixels", { count: this._sides[side] }));
      this._handles[side].setAttribute("aria-valuemax", String(Math.max(this._sides[side], this._most)));
    }
    for (const [index, ratio] of RATIOS.entries()) {
      const isChosen = this.hasSides && isRatio(this._size, ratio.split(":").map(Number));
      this._ratios[index].setAttribute("aria-pressed", String(isChosen));
    }
    this._reset.hidden = !this.hasSides;
    this._layOut();
    this._showStatus();
  }

  _showStatus() {
    const { width, height } = this._size;
    const { problem } = this;
    this._status.classList.toggle("is-problem", Boolean(problem));
    const small = problem ? fittingIn(this._image, this._sides, this._rule) : null;
    replaceChildren(
      this._status,
      problem ?? (this.hasSides ? t("edit.outpaint.result", plain({ width, height })) : t("edit.outpaint.help")),
      small &&
        h(
          "button",
          { type: "button", class: "button quiet", onclick: () => this._shrink(small) },
          icon("minus", { size: 18 }),
          t("edit.outpaint.shrink", plain(small)),
        ),
    );
  }

  _shrink({ width, height }) {
    const scale = width / this._image.width;
    const sides = Object.fromEntries(SIDES.map((side) => [side, Math.floor(this._sides[side] * scale)]));
    this.dispatchEvent(new CustomEvent("shrink", { detail: { width, height, sides } }));
  }

  _layOut() {
    const { clientWidth, clientHeight } = this._view;
    if (!this._image || !clientWidth) return;
    const { width, height } = this._size;
    const spare = 1 - ROOM;
    this._scale = this._frozenScale ?? Math.min((clientWidth * spare) / width, (clientHeight * spare) / height);
    const px = (pixels) => `${pixels * this._scale}px`;
    const { left, top } = this._sides;
    const frame = this._frame.style;
    frame.setProperty("width", px(width));
    frame.setProperty("height", px(height));
    const x = this._frozenScale ? this._origin.x - left * this._scale : (clientWidth - width * this._scale) / 2;
    const y = this._frozenScale ? this._origin.y - top * this._scale : (clientHeight - height * this._scale) / 2;
    if (!this._frozenScale) this._origin = { x: x + left * this._scale, y: y + top * this._scale };
    frame.setProperty("transform", `translate(${x}px, ${y}px)`);
    const picture = this._picture.style;
    picture.setProperty("transform", `translate(${px(left)}, ${px(top)})`);
    picture.setProperty("width", px(this._image.width));
    picture.setProperty("height", px(this._image.height));
  }
}

/** Numbers of pixels are written as the API writes them, without separators. */
function plain(values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, String(value)]));
}

function isRatio({ width, height }, [across, down]) {
  return Math.abs(width / height / (across / down) - 1) < 0.005;
}

customElements.define("easel-outpaint-frame", OutpaintFrame);
