// `<easel-edit-panel>`: the images of a request and what is done to the first one: all of it drawn anew, a masked part, or
// the space around it. Set `model` (a model of GET /v1/models); read `problem` and call `read()` before sending.
// Event `change`.

import "../more_icons.js";
import { h, replaceChildren } from "../dom.js";
import { t } from "../text.js";
import "./image_inputs.js";
import { run } from "./image_tasks.js";
import { MaskBuffer } from "./mask_buffer.js";
import "./mask_editor.js";
import "./outpaint_frame.js";

const MODES = ["whole", "part", "extend"];
/** Tasks that begin with an image */
const TASKS = ["edit", "vary", "inpaint"];

export class EditPanel extends HTMLElement {
  constructor() {
    super();
    this._mode = "whole";
    this._count = 0;
  }

  /** A model's document: what it can do with images decides what is offered. */
  set model(model) {
    this._model = model;
    if (this._inputs) this._show();
  }

  get model() {
    return this._model;
  }

  /** "whole", "part" (masked) or "extend", as far as the model can. */
  get mode() {
    const modes = this._modes();
    return modes.includes(this._mode) ? this._mode : modes[0];
  }

  set mode(mode) {
    this._mode = mode;
    if (this._inputs) this._show();
    this.dispatchEvent(new CustomEvent("change"));
  }

  /** Where the tools are shown: an element, such as the middle of a wide window; null: below the images. */
  set host(host) {
    this._host = host;
    this._placeTool();
  }

  /** Whether a tool (mask or frame) is in use. */
  get hasTool() {
    return this.images.length > 0 && this.mode !== "whole";
  }

  /** The images that are sent: [{blob, name, url, width, height, stored}]. */
  get images() {
    return this._inputs?.images ?? [];
  }

  /** The task of the request: "edit", "vary" (for tools without a prompt) or "inpaint"; null without an image. */
  get task() {
    return this.images.length ? this._task : null;
  }

  get _task() {
    if (this.mode !== "whole") return "inpaint";
    return !this._model || this._model.tasks.includes("edit") ? "edit" : "vary";
  }

  /** Why the request cannot be sent, in words, or null. */
  get problem() {
    if (!this._inputs) return null;
    if (!this.images.length) return this._inputs.problem;
    if (!this._takesImages) return t("edit.panel.no_images", { model: this._model.name ?? this._model.id });
    if (this._inputs.problem) return this._inputs.problem;
    if (this.mode === "part" && this._editor.buffer?.isEmpty) return t("edit.panel.nothing_masked");
    if (this.mode === "extend") return this._frame.hasSides ? this._frame.problem : t("edit.panel.nothing_extended");
    return null;
  }

  /**
   * What is sent: {images: [{blob, name, width, height, stored}], mask: Blob|null, outpaint: {left, top, right,
   * bottom}|null}. The mask is a PNG of the first image's size, transparent where to draw.
   */
  async read() {
    const { images, mode } = this;
    const isMasked = images.length && mode === "part" && !this._editor.buffer.isEmpty;
    const { pixels, width, height } = this._editor.buffer ?? {};
    return {
      images,
      mask: isMasked ? await run("encodeMask", { pixels, width, height }) : null,
      outpaint: images.length && mode === "extend" && this._frame.hasSides ? this._frame.sides : null,
    };
  }

  /** Add files, or images of the gallery ([{name, url}]); with `isFirst` before those that are there. */
  add(files) {
    return this._inputs.add(files);
  }

  addStored(images, options) {
    return this._inputs.addStored(images, options);
  }

  clear() {
    this._inputs.clear();
  }

  connectedCallback() {
    if (!this._inputs) this._build();
    this._show();
  }

  _build() {
    this.classList.add("edit-panel");
    this._inputs = h("easel-image-inputs");
    this._editor = h("easel-mask-editor");
    this._frame = h("easel-outpaint-frame");
    this._modeChoice = h("div", { class: "segments", role: "radiogroup", "aria-label": t("edit.panel.mode") });
    this._tool = h("div", { class: "edit-tool" });
    this._inputs.addEventListener("change", () => this._changed());
    this._editor.addEventListener("change", () => this.dispatchEvent(new CustomEvent("change")));
    this._frame.addEventListener("change", () => this.dispatchEvent(new CustomEvent("change")));
    this._frame.addEventListener("shrink", ({ detail }) => this._shrink(detail));
    this._warning = h("p", { class: "field-error", role: "status" });
    this.append(this._inputs, this._warning, this._modeChoice);
    this._placeTool();
  }

  _placeTool() {
    const place = this._host ?? this;
    if (this._tool && this._tool.parentNode !== place) place.append(this._tool);
  }

  _changed() {
    this._show();
    this.dispatchEvent(new CustomEvent("change"));
  }

  /** The image itself is scaled down, so that it and its frame fit into what the model draws. */
  async _shrink({ width, height, sides }) {
    await this._inputs.rescale(this.images[0], { width, height });
    this._frame.sides = sides;
  }

  get _takesImages() {
    return !this._model || this._model.tasks.some((task) => TASKS.includes(task));
  }

  _modes() {
    const tasks = this._model?.tasks ?? ["edit"];
    const modes = MODES.filter((mode) => tasks.includes("inpaint") || mode === "whole");
    // A model that only fills parts cannot draw the whole picture anew.
    return tasks.includes("edit") || tasks.includes("vary") || modes.length === 1 ? modes : modes.slice(1);
  }

  _show() {
    const { min, max } = this._model?.limits?.images?.[this._task] ?? { min: 1, max: 1 };
    this._inputs.limits = { min, max };
    const [first] = this.images;
    const modes = this._modes();
    this._warning.textContent = first && !this._takesImages ? this.problem : "";
    this._warning.hidden = !this._warning.textContent;
    this._modeChoice.hidden = !first || modes.length < 2;
    this._tool.hidden = !first || this.mode === "whole";
    this._showModes(modes);
    if (first) this._showTool(first);
    else this._tool.replaceChildren();
  }

  _showModes(modes) {
    if (this._shownModes !== modes.join()) {
      this._shownModes = modes.join();
      this._radios = Object.fromEntries(modes.map((mode) => [mode, this._radio(mode)]));
      replaceChildren(
        this._modeChoice,
        ...modes.map((mode) => h("label", {}, this._radios[mode], h("span", {}, t(`edit.panel.${mode}`)))),
      );
    }
    this._radios[this.mode].checked = true;
  }

  _radio(mode) {
    return h("input", { type: "radio", name: "edit-mode", value: mode, onchange: () => (this.mode = mode) });
  }

  _showTool(image) {
    const { mode } = this;
    if (mode === "part") {
      this._showEditor(image);
    } else if (mode === "extend") {
      if (this._model) this._frame.rule = this._model.size;
      this._frame.image = image;
    }
    const tool = { part: this._editor, extend: this._frame }[mode];
    if (this._tool.firstChild !== (tool ?? null)) replaceChildren(this._tool, tool);
  }

  /** The mask belongs to its image: it is there again when the image is first again, or another model is chosen. */
  _showEditor(image) {
    image.buffer ??= new MaskBuffer(image.width, image.height);
    if (this._editor.buffer === image.buffer) return;
    this._editor.image = image;
    this._editor.buffer = image.buffer;
  }
}

customElements.define("easel-edit-panel", EditPanel);
