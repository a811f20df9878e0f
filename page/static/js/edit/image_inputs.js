// `<easel-image-inputs>`: the images of a request, dropped, pasted, picked or taken from the gallery. Set `limits` ({min,
// max}, from the model); read `images` (those that are sent) and `problem` (why they cannot be, or null). Event `change`.

import { url } from "../api.js";
import { h, icon, iconButton, replaceChildren } from "../dom.js";
import { t } from "../text.js";
import { announce } from "../toasts.js";
import { canTake, droppedIn } from "./dropped.js";
import { pickStored } from "./gallery_picker.js";
import "./icons.js";
import { ImageProblem, readImage, release, scaleImage, sizeText } from "./image_file.js";

const TYPES = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/avif,image/heic,.heic,.heif";

export class ImageInputs extends HTMLElement {
  constructor() {
    super();
    this._limits = { min: 0, max: 1 };
    this._entries = [];
    this._problems = [];
    this._reading = 0;
    this._onPaste = (event) => this._takePaste(event);
  }

  connectedCallback() {
    if (!this._list) this._build();
    document.addEventListener("paste", this._onPaste);
  }

  disconnectedCallback() {
    document.removeEventListener("paste", this._onPaste);
  }

  set limits(limits) {
    this._limits = limits;
    this._show();
  }

  get limits() {
    return this._limits;
  }

  /** The images that are sent: [{blob, name, url, preview, width, height, notes, stored}], in order. */
  get images() {
    return this._entries.slice(0, this._limits.max);
  }

  /** Why the request cannot be sent with these images, in words, or null. */
  get problem() {
    const { min } = this._limits;
    if (this._reading) return t("edit.images.reading");
    return this._entries.length && this._entries.length < min ? t("edit.images.too_few", { count: min }) : null;
  }

  /** Add files. What cannot be used is said below the images. */
  async add(files) {
    await this._read([...files], (file) => readImage(file, file.name ?? ""));
  }

  /** Add images of the gallery: [{name, url}]. `isFirst`: before those that are there, to edit these. */
  async addStored(images, { isFirst = false } = {}) {
    const read = async ({ name }) => ({ ...(await readImage(await download(name), name)), stored: name });
    await this._read(images, read, isFirst);
  }

  clear() {
    for (const entry of this._entries) release(entry);
    this._entries = [];
    this._problems = [];
    this._changed();
  }

  /** Replace an image by the same one at another size. */
  async rescale(entry, size) {
    const scaled = await scaleImage(entry, size);
    const at = this._entries.indexOf(entry);
    if (at < 0) return;
    release(entry);
    this._entries[at] = { ...scaled, buffer: entry.buffer?.resized(size.width, size.height) };
    this._changed();
  }

  // -- building --------------------------------------------------------------------------------------------------

  _build() {
    this.classList.add("image-inputs");
    this._file = h("input", { type: "file", accept: TYPES, hidden: true, "aria-hidden": "true", tabindex: "-1" });
    this._file.addEventListener("change", () => {
      this.add(this._file.files);
      this._file.value = ""; // so that the same file can be picked again
    });
    this._list = h("ol", { class: "image-list" });
    this._hint = h("p", { class: "image-hint" });
    this._messages = h("ul", { class: "image-messages", role: "status" });
    this._actions = h(
      "div",
      { class: "image-actions" },
      (this._pick = h("button", { type: "button", class: "button", onclick: () => this._file.click() })),
      h(
        "button",
        { type: "button", class: "button quiet", onclick: () => this._pickStored() },
        icon("gallery", { size: 18 }),
        t("draw.image.from_gallery"),
      ),
    );
    this.append(this._file, this._list, this._hint, this._actions, this._messages);
    for (const type of ["dragenter", "dragover"]) this.addEventListener(type, (event) => this._onDrag(event));
    for (const type of ["dragleave", "drop"]) this.addEventListener(type, () => this.classList.remove("is-target"));
    this.addEventListener("drop", (event) => this._onDrop(event));
    this._show();
  }

  // -- taking images ---------------------------------------------------------------------------------------------

  async _read(sources, read, isFirst = false) {
    let place = 0;
    this._problems = [];
    this._reading += sources.length;
    this._show();
    for (const source of sources) {
      try {
        const entry = await read(source);
        this._entries.splice(isFirst ? place : this._entries.length, 0, entry);
        place += 1;
      } catch (error) {
        this._problems.push(problemText(error, source.name));
      }
      this._reading -= 1;
      this._changed();
    }
    const count = this._entries.length;
    announce([...this._problems, t("edit.images.count", { count })].join(" "));
  }

  _takePaste(event) {
    if (!this.checkVisibility?.() && !this.offsetParent) return;
    if (document.querySelector("dialog[open]")) return;
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => !type || type.startsWith("image/"));
    // Programs for texts and tables put a picture of the text beside it: whoever types wants the text.
    const isTyping = event.target instanceof Element && event.target.matches("textarea, input, [contenteditable]");
    if (!files.length || (isTyping && event.clipboardData.getData("text/plain"))) return;
    event.preventDefault();
    this.add(files);
  }

  /** Take what was dropped here. */
  _onDrop(event) {
    if (this._dragged !== undefined) return;
    event.preventDefault();
    const { files, stored } = droppedIn(event);
    if (stored) this.addStored([{ name: stored }]);
    else if (files.length) this.add(files);
    else this._say(t("edit.images.not_a_file"));
  }

  _onDrag(event) {
    if (this._dragged !== undefined || !canTake(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    this.classList.add("is-target");
  }

  async _pickStored() {
    const images = await pickStored({ count: Math.max(1, this._limits.max - this._entries.length) });
    if (images.length) await this.addStored(images);
  }

  // -- order -----------------------------------------------------------------------------------------------------

  _move(from, to) {
    if (to < 0 || to >= this._entries.length || from === to) return;
    const [entry] = this._entries.splice(from, 1);
    this._entries.splice(to, 0, entry);
    this._changed();
    announce(t("edit.images.moved", { place: to + 1, count: this._entries.length }));
  }

  _remove(index) {
    const [entry] = this._entries.splice(index, 1);
    release(entry);
    this._problems = [];
    this._changed();
    announce(t("edit.images.count", { count: this._entries.length }));
    const next = this._list.children[Math.min(index, this._entries.length - 1)];
    (next?.querySelector(".image-remove") ?? this._pick).focus();
  }

  // -- showing ---------------------------------------------------------------------------------------------------

  _changed() {
    this._show();
    this.dispatchEvent(new CustomEvent("change"));
  }

  _say(text) {
    this._problems = [text];
    this._show();
    announce(text);
  }

  _show() {
    if (!this._list) return;
    const { max } = this._limits;
    const count = this._entries.length;
    this._file.multiple = max > 1;
    this.classList.toggle("is-empty", !count && !this._reading);
    replaceChildren(
      this._list,
      ...this._entries.map((entry, index) => this._tile(entry, index)),
      ...Array.from({ length: this._reading }, () => h("li", { class: "image-tile is-reading" })),
    );
    this._hint.textContent = hintText(count, max);
    this._hint.hidden = count > 0 && count <= max;
    replaceChildren(this._pick, icon("add", { size: 18 }), count ? t("edit.images.add") : t("edit.images.choose"));
    this._actions.hidden = count >= max && count > 0;
    const several = count > 1;
    replaceChildren(
      this._messages,
      ...this._problems.map((text) => h("li", { class: "is-problem" }, text)),
      ...this._entries.flatMap(({ name, notes }) =>
        notes.map(({ code, values }) => {
          const text = t(`edit.note.${code}`, values);
          return h("li", {}, several ? `${name}: ${text}` : text);
        }),
      ),
    );
    this._messages.hidden = !this._messages.childElementCount;
  }

  _tile(entry, index) {
    const isUnused = index >= this._limits.max;
    const several = this._entries.length > 1;
    const label = t("edit.images.label", { place: index + 1, name: entry.name, size: sizeText(entry) });
    const tile = h(
      "li",
      { class: `image-tile${isUnused ? " is-unused" : ""}`, draggable: several ? "true" : null, title: label },
      h("img", { src: entry.preview, alt: label, draggable: "false" }),
      several && h("span", { class: "image-number", "aria-hidden": "true" }, index + 1),
      isUnused && h("span", { class: "image-unused" }, t("edit.images.unused")),
      h(
        "div",
        { class: "image-tile-actions" },
        several &&
          iconButton("arrowLeft", t("edit.images.earlier", { name: entry.name }), {
            disabled: index === 0,
            onclick: () => this._moveByButton(index, index - 1, 0),
          }),
        several &&
          iconButton("arrowRight", t("edit.images.later", { name: entry.name }), {
            disabled: index === this._entries.length - 1,
            onclick: () => this._moveByButton(index, index + 1, 1),
          }),
        iconButton("close", t("edit.images.remove", { name: entry.name }), {
          class: "icon-button image-remove",
          onclick: () => this._remove(index),
        }),
      ),
    );
    this._listenForOrder(tile, index);
    return tile;
  }

  _moveByButton(from, to, button) {
    this._move(from, to);
    const buttons = [...(this._list.children[to]?.querySelectorAll(".image-tile-actions button") ?? [])];
    (buttons[button]?.disabled ? buttons[1 - button] : buttons[button])?.focus();
  }

  _listenForOrder(tile, index) {
    tile.addEventListener("dragstart", (event) => {
      this._dragged = index;
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", String(index + 1));
    });
    tile.addEventListener("dragover", (event) => this._dragged !== undefined && event.preventDefault());
    tile.addEventListener("drop", (event) => {
      if (this._dragged === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const from = this._dragged;
      this._dragged = undefined;
      this._move(from, index);
    });
    tile.addEventListener("dragend", () => (this._dragged = undefined));
  }
}

function hintText(count, max) {
  if (!count) return max > 1 ? t("edit.images.drop_several", { count: max }) : t("edit.images.drop");
  return t("edit.images.too_many", { count: max });
}

function problemText(error, name) {
  if (error instanceof ImageProblem) return t(`edit.problem.${error.code}`, { name: name || t("edit.images.unnamed") });
  return t("edit.problem.download", { name: name ?? "", reason: error.message });
}

/** The bytes of an image of the store. They need no key. */
async function download(name) {
  const response = await fetch(url(`api/images/cache/${encodeURIComponent(name)}`), { credentials: "omit" });
  if (!response.ok) throw new Error(response.status === 404 ? t("edit.problem.gone") : `HTTP ${response.status}`);
  return response.blob();
}

customElements.define("easel-image-inputs", ImageInputs);
