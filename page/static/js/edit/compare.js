// `<easel-compare>`: an image and what was made of it, one over the other, with a line that is dragged or moved by keys.
// Set `pair` ({before, after, place}): images as {url, width, height}; `place` ({left, top, width, height} in pixels of
// `after`) says where an image lies that was extended.

import { h } from "../dom.js";
import { t } from "../text.js";

const STEP = 2;
const LARGE_STEP = 10;

export class Compare extends HTMLElement {
  constructor() {
    super();
    this._share = 50;
  }

  set pair(pair) {
    this._pair = pair;
    if (this._box) this._show();
  }

  /** Where the line is, in percent from the left. */
  get share() {
    return this._share;
  }

  set share(share) {
    this._share = Math.min(100, Math.max(0, share));
    this._placeLine();
  }

  focusLine() {
    this._line.focus();
  }

  connectedCallback() {
    if (!this._box) this._build();
    if (this._pair) this._show();
  }

  _build() {
    this.classList.add("compare");
    this._after = h("img", { class: "compare-after", alt: t("edit.compare.after"), draggable: "false" });
    this._before = h("img", { class: "compare-before", alt: t("edit.compare.before"), draggable: "false" });
    this._line = h(
      "div",
      {
        class: "compare-line",
        role: "slider",
        tabindex: "0",
        "aria-label": t("edit.compare.label"),
        "aria-orientation": "horizontal",
        "aria-valuemin": "0",
        "aria-valuemax": "100",
      },
      h("span", { class: "compare-grip", "aria-hidden": "true" }),
    );
    this._box = h(
      "div",
      { class: "compare-box" },
      this._after,
      (this._clip = h("div", { class: "compare-clip" }, this._before)),
      h("span", { class: "compare-label is-before", "aria-hidden": "true" }, t("edit.compare.before")),
      h("span", { class: "compare-label is-after", "aria-hidden": "true" }, t("edit.compare.after")),
      this._line,
    );
    this.append(this._box);
    this._line.addEventListener("keydown", (event) => this._onKey(event));
    this._box.addEventListener("pointerdown", (event) => this._onDown(event));
  }

  _show() {
    const { before, after, place } = this._pair;
    this._after.src = after.url;
    this._before.src = before.url;
    // Both are laid out in the space of the result, so that they have one scale.
    this._box.style.setProperty("aspect-ratio", `${after.width} / ${after.height}`);
    this._box.style.setProperty("--compare-ratio", String(after.width / after.height));
    const inset = place
      ? [
          (place.top / after.height) * 100,
          (1 - (place.left + place.width) / after.width) * 100,
          (1 - (place.top + place.height) / after.height) * 100,
          (place.left / after.width) * 100,
        ]
      : [0, 0, 0, 0];
    this._before.style.setProperty("inset", inset.map((share) => `${share}%`).join(" "));
    this._before.style.setProperty("width", place ? `${(place.width / after.width) * 100}%` : "100%");
    this._before.style.setProperty("height", place ? `${(place.height / after.height) * 100}%` : "100%");
    this._placeLine();
  }

  _placeLine() {
    if (!this._box) return;
    this._line.style.setProperty("left", `${this._share}%`);
    this._clip.style.setProperty("clip-path", `inset(0 ${100 - this._share}% 0 0)`);
    this._line.setAttribute("aria-valuenow", String(Math.round(this._share)));
    this._line.setAttribute("aria-valuetext", t("edit.compare.share", { share: Math.round(this._share) }));
    this._box.classList.toggle("is-all-before", this._share > 88);
    this._box.classList.toggle("is-all-after", this._share < 12);
  }

  _onKey(event) {
    const step = event.shiftKey ? LARGE_STEP : STEP;
    const target = {
      ArrowLeft: this._share - step,
      ArrowDown: this._share - step,
      ArrowRight: this._share + step,
      ArrowUp: this._share + step,
      PageDown: this._share - LARGE_STEP,
      PageUp: this._share + LARGE_STEP,
      Home: 0,
      End: 100,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.share = target;
  }

  _onDown(event) {
    if (event.button) return;
    event.preventDefault();
    this._line.focus();
    this._box.setPointerCapture(event.pointerId);
    const move = ({ clientX }) => {
      const { left, width } = this._box.getBoundingClientRect();
      this.share = ((clientX - left) / width) * 100;
    };
    move(event);
    this._box.addEventListener("pointermove", move);
    this._box.addEventListener("lostpointercapture", () => this._box.removeEventListener("pointermove", move), {
      once: true,
    });
  }
}

customElements.define("easel-compare", Compare);
