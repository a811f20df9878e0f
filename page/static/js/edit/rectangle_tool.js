// The rectangle of the mask editor: dragged with a pointer, or moved and sized with the keys.

import { t } from "../text.js";

const STEPS = 32;

export class RectangleTool {
  constructor(editor) {
    this._editor = editor;
    this._box = null;
  }

  /** Show the rectangle for the keys, at first in the middle of the image, or hide it. */
  show(isShown) {
    const { image } = this._editor;
    this._box = isShown
      ? this._bounded({
          left: image.width / 4,
          top: image.height / 4,
          right: (image.width * 3) / 4,
          bottom: (image.height * 3) / 4,
        })
      : null;
    this.place();
    if (isShown) this._editor.announce(t("edit.mask.rectangle_help", this._numbers()));
  }

  /** The rectangle between two points of the image. */
  between(from, to) {
    this._box = this._bounded({
      left: Math.min(from.x, to.x),
      top: Math.min(from.y, to.y),
      right: Math.max(from.x, to.x),
      bottom: Math.max(from.y, to.y),
    });
    this.place();
  }

  /** Paint the rectangle. */
  apply() {
    const box = this._box;
    this._box = null;
    this.place();
    if (box && box.right > box.left && box.bottom > box.top) this._editor.fillBox(box);
  }

  /** Whether the key was one of the rectangle's. Arrows move it, with Shift they size it; Enter paints it. */
  onKey({ key, shiftKey }) {
    if (key === "Enter") {
      if (!this._box) this.show(true);
      else this._applyByKey();
      return true;
    }
    if (key === "Escape" && this._box) {
      this.show(false);
      return true;
    }
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
    if (!dx && !dy) return false;
    if (!this._box) this.show(true);
    else this._step(dx, dy, shiftKey);
    return true;
  }

  /** Put the rectangle where the viewport has it. */
  place() {
    const element = this._editor._rectangle;
    element.hidden = !this._box;
    if (!this._box) return;
    const from = this._editor.viewport.toScreen(this._box.left, this._box.top);
    const to = this._editor.viewport.toScreen(this._box.right, this._box.bottom);
    element.style.setProperty("transform", `translate(${from.x}px, ${from.y}px)`);
    element.style.setProperty("width", `${to.x - from.x}px`);
    element.style.setProperty("height", `${to.y - from.y}px`);
  }

  _applyByKey() {
    const box = this._box;
    const key = this._editor.isErasing ? "edit.mask.rectangle_cleared" : "edit.mask.rectangle_painted";
    const numbers = this._numbers();
    this._editor.fillBox(box);
    this._box = box; // stays, for the next one beside it
    this.place();
    this._editor.announce(t(key, numbers));
  }

  _step(dx, dy, isSizing) {
    const { image } = this._editor;
    const x = dx * Math.max(1, Math.round(image.width / STEPS));
    const y = dy * Math.max(1, Math.round(image.height / STEPS));
    const { left, top, right, bottom } = this._box;
    if (isSizing) {
      this._box = this._bounded({ left, top, right: Math.max(left + 1, right + x), bottom: Math.max(top + 1, bottom + y) });
    } else {
      const shiftX = Math.min(image.width - right, Math.max(-left, x));
      const shiftY = Math.min(image.height - bottom, Math.max(-top, y));
      this._box = { left: left + shiftX, top: top + shiftY, right: right + shiftX, bottom: bottom + shiftY };
    }
    this.place();
    this._editor.announce(t("edit.mask.rectangle_at", this._numbers()));
  }

  _bounded({ left, top, right, bottom }) {
    const { width, height } = this._editor.image;
    return {
      left: Math.max(0, Math.round(left)),
      top: Math.max(0, Math.round(top)),
      right: Math.min(width, Math.round(right)),
      bottom: Math.min(height, Math.round(bottom)),
    };
  }

  _numbers() {
    const { left, top, right, bottom } = this._box;
    return { x: left, y: top, width: right - left, height: bottom - top };
  }
}
