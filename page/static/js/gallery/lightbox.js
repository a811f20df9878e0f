// <easel-lightbox>: one picture of a list on the whole screen, with keys, swipes and what can be done with it.
//
//   const box = document.createElement("easel-lightbox");
//   box.context = context; document.body.append(box);
//   box.open({images, more}, name)      `images`: a function; `more`: reads further ones, may be absent
//   box.refresh(goneNames)              after the list has changed
// It tells what happened to images by the events "changed" {images} and "deleted" {names}, and "closed" {name}.

import "../more_icons.js";
import { h, icon } from "../dom.js";
import { deleteImages, download, handOver, mayVary, pathOf, pictureUrl, setFavourite, thumbnailUrl } from "./actions.js";
import { detailsOf } from "./details.js";

const SWIPE = 60;
const CLOSING_SWIPE = 110;

class EaselLightbox extends HTMLElement {
  /** `source`: `{images(): Image[], more?(): Promise}`. */
  open(source, name) {
    this.source = source;
    this.build();
    this.opener = document.activeElement;
    this.variable = null; // the models may have changed
    this.dialog.showModal();
    this.go(this.source.images().findIndex((image) => image.name === name), 0);
    this.stage.focus({ preventScroll: true });
  }

  get isOpen() {
    return Boolean(this.dialog?.open);
  }

  close() {
    this.dialog?.close();
  }

  build() {
    if (this.dialog) return;
    const { t } = this.context;
    this.picture = h("img", { class: "lightbox-picture", alt: "", draggable: "false", decoding: "async" });
    this.stage = h("div", { class: "lightbox-stage", tabindex: "-1" }, this.picture);
    this.notice = h("p", { class: "lightbox-notice", role: "status", hidden: true });
    this.count = h("p", { class: "lightbox-count" });
    this.side = h("aside", { class: "lightbox-side", "aria-label": t("gallery.details"), hidden: true, tabindex: "0" });
    this.buttons = {
      favourite: this.tool("heart", "gallery.favourite", "f", () => this.favourite()),
      download: this.tool("download", "gallery.download", "", () => this.download()),
      details: this.tool("info", "gallery.details", "i", () => this.toggleDetails()),
      delete: this.tool("delete", "gallery.delete", "Delete", () => this.delete()),
      close: this.tool("close", "common.close", "Escape", () => this.close()),
      previous: this.tool("arrowLeft", "gallery.previous", "ArrowLeft", () => this.step(-1), "lightbox-previous"),
      next: this.tool("arrowRight", "gallery.next", "ArrowRight", () => this.step(1), "lightbox-next"),
    };
    this.buttons.favourite.setAttribute("aria-pressed", "false");
    this.buttons.details.setAttribute("aria-expanded", "false");
    const b = this.buttons;
    this.uses = h(
      "div",
      { class: "lightbox-uses" },
      this.use("settings", "gallery.use_settings"),
      this.use("same-seed", "gallery.same_seed"),
      this.use("edit", "gallery.edit"),
      this.use("vary", "gallery.vary"),
    );
    this.dialog = h(
      "dialog",
      { class: "lightbox", "aria-label": t("gallery.viewer") },
      h(
        "div",
        { class: "lightbox-top" },
        this.count,
        h("div", { class: "lightbox-tools" }, b.favourite, b.download, b.details, b.delete, b.close),
      ),
      h("div", { class: "lightbox-main" }, this.stage, b.previous, b.next, this.notice),
      this.side,
      this.uses,
    );
    this.append(this.dialog);
    this.dialog.addEventListener("keydown", (event) => this.pressed(event));
    this.dialog.addEventListener("close", () => this.closed());
    this.picture.addEventListener("error", () => this.failed());
    this.picture.addEventListener("load", () => this.dialog.classList.add("is-loaded"));
    this.listenToPointer();
  }

  tool(name, text, key, onclick, className = "") {
    const label = this.context.t(text);
    const props = { type: "button", class: `lightbox-tool ${className}`, "aria-label": label, title: label, onclick };
    if (key) props["aria-keyshortcuts"] = key;
    return h("button", props, icon(name));
  }

  use(mode, text) {
    const onclick = () => {
      this.close();
      handOver(this.context, this.image, mode);
    };
    return h("button", { type: "button", class: "lightbox-use", "data-mode": mode, onclick }, this.context.t(text));
  }

  // --- which picture -----------------------------------------------------------------------------

  step(by) {
    // The place of an image that is gone is taken by the one behind it.
    const to = this.isGone && by > 0 ? this.index : this.index + by;
    if (to < 0 || to >= this.source.images().length) {
      this.bounce();
      return;
    }
    this.go(to, by);
  }

  go(index, by) {
    const images = this.source.images();
    const image = images[index];
    if (!image) {
      this.close();
      return;
    }
    this.index = index;
    this.isGone = false;
    this.image = image;
    this.show(by);
    this.preload(images[index + 1]);
    this.preload(images[index - 1]);
    if (index >= images.length - 5) this.source.more?.();
  }

  show(by) {
    const { image, picture, context } = this;
    this.dialog.classList.remove("is-loaded", "is-actual");
    this.dialog.dataset.from = by > 0 ? "next" : by < 0 ? "previous" : "";
    picture.style.removeProperty("transform");
    // The thumbnail lies behind the picture until that is there; both have the shape that is known, so nothing jumps.
    picture.style.setProperty("background-image", `url("${thumbnailUrl(context.api, image)}")`);
    picture.style.setProperty("aspect-ratio", image.width ? `${image.width} / ${image.height}` : "auto");
    picture.style.setProperty("--width", image.width ? `${image.width}px` : "none");
    picture.style.setProperty("--shape", image.width ? String(image.width / image.height) : "1");
    picture.src = pictureUrl(context.api, image);
    this.showVary(image);
    picture.alt = image.prompt ? image.prompt.slice(0, 300) : context.t("gallery.picture");
    this.update();
    context.announce(context.t("gallery.place", { place: this.index + 1, total: this.total() }));
  }

  /** Only some models draw variations. */
  async showVary(image) {
    const button = this.uses.querySelector('[data-mode="vary"]');
    button.hidden = true;
    this.variable ??= new Map(); // model -> a promise
    if (!this.variable.has(image.model)) this.variable.set(image.model, mayVary(this.context, image));
    const may = await this.variable.get(image.model);
    if (image.model === this.image.model) button.hidden = !may;
  }

  /** The keys go to what has the focus, and a button that is hidden or disabled has none. */
  keepFocus() {
    if (document.activeElement?.matches("body, .lightbox :is(:disabled, [hidden], [hidden] *)")) this.stage.focus({ preventScroll: true });
  }

  total() {
    return this.source.total?.() ?? this.source.images().length;
  }

  /** What depends on the state of the image, without loading it again. */
  update() {
    const { image, context, buttons } = this;
    const { t } = context;
    this.count.textContent = t("gallery.place", { place: this.index + 1, total: this.total() });
    buttons.favourite.setAttribute("aria-pressed", String(Boolean(image.favourite)));
    for (const name of ["favourite", "download", "delete"]) buttons[name].disabled = this.isGone;
    for (const button of this.uses.children) {
      const needsPicture = button.dataset.mode === "edit" || button.dataset.mode === "vary";
      const needsSeed = button.dataset.mode === "same-seed";
      const isUnknown = image.model === null && image.prompt === null;
      button.disabled = needsPicture ? this.isGone : isUnknown || (needsSeed && image.seed === null);
    }
    if (this.isGone) {
      clearTimeout(this.telling);
      this.notice.textContent = t("gallery.gone");
    }
    this.notice.hidden = !this.isGone;
    this.dialog.classList.toggle("is-gone", this.isGone);
    buttons.previous.disabled = this.index <= 0;
    buttons.next.disabled = this.index >= this.source.images().length - (this.isGone ? 0 : 1);
    if (!this.side.hidden) this.fillDetails();
    if (this.isOpen) this.keepFocus();
  }

  preload(image) {
    if (image) new Image().src = pictureUrl(this.context.api, image);
  }

  /** The list has changed. `gone`: names of images that are not kept any more. */
  refresh(gone = []) {
    if (!this.isOpen) return;
    const images = this.source.images();
    const place = images.findIndex((image) => image.name === this.image.name);
    if (gone.includes(this.image.name)) {
      this.isGone = true;
    } else if (place >= 0) {
      this.index = place;
      this.image = images[place];
    }
    this.update();
  }

  async failed() {
    const { image, context } = this;
    try {
      await context.api.request(pathOf(image.name));
      this.tell(context.t("gallery.not_loaded"));
    } catch (error) {
      if (error.status !== 404) {
        this.tell(context.t("gallery.not_loaded"));
      } else {
        this.vanished(image);
      }
    }
  }

  /** The server has this image no more. */
  vanished(image) {
    if (image === this.image) {
      this.isGone = true;
      this.update();
    }
    this.dispatchEvent(new CustomEvent("deleted", { detail: { names: [image.name] } }));
  }

  /** A line over the picture: messages elsewhere on the page are behind it. */
  tell(text) {
    this.notice.textContent = text;
    this.notice.hidden = false;
    clearTimeout(this.telling);
    this.telling = setTimeout(() => (this.notice.hidden = !this.isGone), 6000);
  }

  // --- what the reader does ----------------------------------------------------------------------

  pressed(event) {
    if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const isReversed = getComputedStyle(this).direction === "rtl" ? -1 : 1;
    const isInSide = event.target.closest(".lightbox-side");
    const keys = {
      ArrowLeft: () => this.step(-isReversed),
      ArrowRight: () => this.step(isReversed),
      Home: () => isInSide || this.go(0, -1),
      End: () => isInSide || this.go(this.source.images().length - 1, 1),
      f: () => this.favourite(),
      i: () => this.toggleDetails(),
      Delete: () => this.delete(),
      Backspace: () => this.delete(),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  listenToPointer() {
    let start = null;
    this.stage.addEventListener("pointerdown", (event) => {
      this.wasSwiped = false;
      start = event.pointerType === "mouse" || this.isActualSize ? null : { x: event.clientX, y: event.clientY };
      if (start && !event.isPrimary) start = null; // two fingers zoom
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (!start || !event.isPrimary) return;
      const x = event.clientX - start.x;
      const y = Math.max(0, event.clientY - start.y);
      this.wasSwiped ||= Math.hypot(x, y) > 10;
      const move = Math.abs(x) > y ? `translateX(${x}px)` : `translateY(${y}px)`;
      this.picture.style.setProperty("transform", move);
    });
    const end = (event) => {
      if (!start) return;
      const x = event.clientX - start.x;
      const y = event.clientY - start.y;
      start = null;
      this.picture.style.removeProperty("transform");
      if (event.type === "pointercancel") return;
      const isReversed = getComputedStyle(this).direction === "rtl" ? -1 : 1;
      if (Math.abs(x) > SWIPE && Math.abs(x) > Math.abs(y)) this.step(x < 0 ? isReversed : -isReversed);
      else if (y > CLOSING_SWIPE) this.close();
    };
    this.stage.addEventListener("pointerup", end);
    this.stage.addEventListener("pointercancel", end);
    this.stage.addEventListener("click", (event) => {
      if (this.wasSwiped) return;
      if (event.target === this.picture) this.toggleSize(event);
      else if (!this.isActualSize) this.close();
    });
  }

  get isActualSize() {
    return this.dialog.classList.contains("is-actual");
  }

  /** Between the whole picture and one pixel for each of its pixels, around the point that was clicked. */
  toggleSize(event) {
    const box = this.picture.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    const isLarger = (this.image.width ?? this.picture.naturalWidth) > box.width + 1;
    if (!this.isActualSize && !isLarger) return;
    this.dialog.classList.toggle("is-actual");
    if (!this.isActualSize) return;
    this.stage.scrollLeft = x * this.picture.offsetWidth - this.stage.clientWidth / 2;
    this.stage.scrollTop = y * this.picture.offsetHeight - this.stage.clientHeight / 2;
  }

  bounce() {
    this.picture.classList.remove("is-end");
    void this.picture.offsetWidth; // so that the animation starts again
    this.picture.classList.add("is-end");
  }

  toggleDetails() {
    this.side.hidden = !this.side.hidden;
    this.buttons.details.setAttribute("aria-expanded", String(!this.side.hidden));
    this.dialog.classList.toggle("has-details", !this.side.hidden);
    if (!this.side.hidden) this.fillDetails();
    this.keepFocus();
  }

  showDetails() {
    if (this.side.hidden) this.toggleDetails();
  }

  fillDetails() {
    const { t } = this.context;
    if (this.detailed === this.image) return;
    this.detailed = this.image;
    const copy = async (text) => {
      try {
        await navigator.clipboard.writeText(text);
        this.tell(t("common.copied"));
      } catch {
        this.tell(t("gallery.not_copied"));
      }
    };
    this.side.replaceChildren(
      h("h2", {}, t("gallery.details")),
      detailsOf(this.image, { t, copy, openSource: (name) => this.openSource(name) }),
    );
  }

  async openSource(name) {
    const place = this.source.images().findIndex((image) => image.name === name);
    if (place >= 0) {
      this.go(place, -1);
      return;
    }
    try {
      this.image = await this.context.api.request(pathOf(name));
      this.isGone = false;
      this.show(0);
    } catch (error) {
      this.tell(error.status === 404 ? this.context.t("gallery.source_gone") : error.message);
    }
  }

  async favourite() {
    if (this.isGone) return;
    const { image, context } = this;
    try {
      const images = await setFavourite(context.api, [image], !image.favourite);
      if (image === this.image) this.image = { ...image, favourite: !image.favourite };
      this.dispatchEvent(new CustomEvent("changed", { detail: { images } }));
      context.announce(context.t(image.favourite ? "gallery.no_favourite_now" : "gallery.favourite_now"));
      this.update();
    } catch (error) {
      this.problem(error);
    }
  }

  async download() {
    if (this.isGone) return;
    try {
      await download(this.context.api, [this.image]);
    } catch (error) {
      this.problem(error);
    }
  }

  async delete() {
    if (this.isGone) return;
    const { image, context } = this;
    const { t } = context;
    const title = t("gallery.delete_question", { count: 1 });
    const isSure = await context.confirm(title, t("gallery.delete_text"), { action: t("gallery.delete"), danger: true });
    if (!isSure) return;
    const { names, error } = await deleteImages(context.api, [image]);
    if (error) {
      this.problem(error);
      return;
    }
    const { index } = this;
    this.dispatchEvent(new CustomEvent("deleted", { detail: { names } }));
    context.announce(t("gallery.deleted", { count: 1 }));
    if (image.name !== this.image.name) return;
    const { length } = this.source.images();
    if (length) this.go(Math.min(index, length - 1), 1);
    else this.close();
  }

  problem(error) {
    if (error.status === 404) this.vanished(this.image);
    else this.tell(error.message || this.context.t("gallery.not_loaded"));
  }

  closed() {
    this.picture.removeAttribute("src");
    this.opener?.focus?.({ preventScroll: true });
    this.dispatchEvent(new CustomEvent("closed", { detail: { name: this.image?.name ?? null } }));
  }
}

customElements.define("easel-lightbox", EaselLightbox);
