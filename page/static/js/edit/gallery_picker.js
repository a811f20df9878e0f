// A dialog in which stored images are picked.

import "../more_icons.js";
import { request, url } from "../api.js";
import { h, iconButton, replaceChildren } from "../dom.js";
import { t } from "../text.js";

const PAGE = 48;
const TYPING_MS = 250;

/** Let the user pick up to `count` images of the gallery: [{name, url, width, height}], empty if they close the dialog. */
export function pickStored({ count = 1 } = {}) {
  return new Promise((resolve) => new Picker(count, resolve).open());
}

class Picker {
  constructor(count, done) {
    this._count = count;
    this._done = done;
    this._picked = new Map();
    this._cursor = null;
    this._run = 0;
  }

  open() {
    this._grid = h("div", { class: "picker-grid", role: "group", "aria-label": t("edit.picker.images") });
    this._message = h("p", { class: "picker-message", role: "status" });
    this._more = h("button", { type: "button", class: "button quiet", hidden: true, onclick: () => this._load() });
    this._more.textContent = t("edit.picker.more");
    this._use = h("button", { type: "button", class: "button primary", disabled: true, onclick: () => this._close(true) });
    this._dialog = h(
      "dialog",
      { class: "dialog image-picker", "aria-labelledby": "image-picker-title" },
      h(
        "header",
        {},
        h("h2", { id: "image-picker-title" }, t("edit.picker.title")),
        iconButton("close", t("edit.picker.close"), { onclick: () => this._close(false) }),
      ),
      h("input", {
        type: "search",
        class: "input",
        placeholder: t("edit.picker.search"),
        "aria-label": t("edit.picker.search"),
        dir: "auto",
        oninput: (event) => this._search(event.target.value),
      }),
      h("div", { class: "picker-scroll" }, this._grid, this._message, this._more),
      this._count > 1 && h("footer", {}, this._use),
    );
    this._dialog.addEventListener("close", () => this._finish());
    document.body.append(this._dialog);
    this._dialog.showModal();
    this._showUse();
    this._load();
  }

  _search(text) {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => {
      this._query = text.trim();
      this._cursor = null;
      this._grid.replaceChildren();
      this._load();
    }, TYPING_MS);
  }

  async _load() {
    const run = (this._run += 1);
    this._more.hidden = true;
    this._message.textContent = t("edit.picker.loading");
    const query = new URLSearchParams({ limit: PAGE });
    if (this._query) query.set("q", this._query);
    if (this._cursor) query.set("cursor", this._cursor);
    try {
      const page = await request(`api/images?${query}`);
      if (run !== this._run) return; // a later search has begun
      this._cursor = page.next;
      for (const image of page.images) this._grid.append(this._tile(image));
      this._more.hidden = !page.next;
      this._message.textContent = this._grid.childElementCount ? "" : t("edit.picker.none");
    } catch (error) {
      if (run === this._run) this._message.textContent = t("edit.picker.failed", { reason: error.message });
    }
  }

  _tile(image) {
    const button = h(
      "button",
      {
        type: "button",
        class: "picker-tile",
        "aria-pressed": String(this._picked.has(image.name)),
        onclick: () => this._choose(button, image),
      },
      h("img", {
        src: url(`api/images/${encodeURIComponent(image.name)}/thumbnail`),
        alt: image.prompt || t("edit.picker.untitled"),
        loading: "lazy",
        decoding: "async",
      }),
    );
    return button;
  }

  _choose(button, image) {
    if (this._count === 1) {
      this._picked.set(image.name, image);
      return this._close(true);
    }
    if (!this._picked.delete(image.name) && this._picked.size < this._count) this._picked.set(image.name, image);
    button.setAttribute("aria-pressed", String(this._picked.has(image.name)));
    this._showUse();
  }

  _showUse() {
    const count = this._picked.size;
    replaceChildren(this._use, t("edit.picker.use", { count, max: this._count }));
    this._use.disabled = !count;
  }

  _close(isUsed) {
    if (!isUsed) this._picked.clear();
    this._isUsed = isUsed;
    this._dialog.close();
  }

  _finish() {
    this._run += 1;
    clearTimeout(this._timer);
    this._dialog.remove();
    this._done(this._isUsed ? [...this._picked.values()] : []);
  }
}
