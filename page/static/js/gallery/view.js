// The gallery: search, the pictures, what is selected, and one of them on the whole screen.

import "../more_icons.js";
import { h, icon } from "../dom.js";
import { dateTime } from "../times.js";
import { deleteImages, download, pathOf, setFavourite, thumbnailUrl } from "./actions.js";
import { ImageList } from "./image_list.js";
import { SearchBar } from "./search_bar.js";
import "./grid.js";
import "./lightbox.js";

const DESCRIPTION = 160;

// As it was left, when the reader comes back from another view.
let lastFilter = {};

export async function mount(container, context) {
  const view = new GalleryView(container, context);
  await view.start();
  return { unmount: () => view.end() };
}

class GalleryView {
  constructor(container, context) {
    this.container = container;
    this.context = context;
    this.list = new ImageList(context.api, (kind) => this.changed(kind));
    this.build();
  }

  build() {
    const { t, api } = this.context;
    this.search = new SearchBar(this.context, lastFilter, (filter) => this.filter(filter));
    this.grid = h("easel-gallery", { "aria-label": t("common.title_gallery") });
    this.grid.thumbnail = (image) => thumbnailUrl(api, image);
    this.grid.describe = (image) => this.describe(image);
    this.chip = h("button", { type: "button", class: "new-chip", hidden: true, onclick: () => this.showNew() });
    this.bar = this.selectionBar();
    this.message = h("div", { class: "gallery-message", hidden: true });
    this.waiting = h("div", { class: "gallery-loading", hidden: true }, t("gallery.loading"));
    this.head = h("div", { class: "gallery-head" }, this.search.element, this.bar);
    this.chipPlace = h("div", { class: "new-chip-place" }, this.chip);
    this.element = h(
      "section",
      { class: "gallery-view", "aria-labelledby": "gallery-heading" },
      h("h1", { id: "gallery-heading", class: "visually-hidden" }, t("common.title_gallery")),
      this.head,
      this.chipPlace,
      this.grid,
      this.message,
      this.waiting,
    );
    this.grid.addEventListener("open", (event) => this.open(event.detail.name));
    this.grid.addEventListener("select", () => this.showSelection());
    this.grid.addEventListener("act", (event) => this.act(event.detail));
    this.grid.addEventListener("near-end", () => this.readMore());
    this.box = document.createElement("easel-lightbox");
    this.box.context = this.context;
    this.box.addEventListener("changed", (event) => this.replaced(event.detail.images));
    this.box.addEventListener("deleted", (event) => this.list.remove(event.detail.names));
    this.box.addEventListener("closed", (event) => this.returnTo(event.detail.name));
    this.element.append(this.box);
  }

  selectionBar() {
    const { t } = this.context;
    this.selected = h("p", { class: "selection-count", "aria-live": "polite" });
    const button = (name, text, onclick, kind = "") =>
      h("button", { type: "button", class: `button ${kind}`, onclick }, icon(name, { size: 18 }), h("span", {}, t(text)));
    this.favouriteButton = button("heart", "gallery.favourite", () => this.favourite(this.chosen()));
    return h(
      "div",
      { class: "selection-bar", role: "toolbar", "aria-label": t("gallery.selected_pictures"), hidden: true },
      this.selected,
      this.favouriteButton,
      button("download", "gallery.download", () => this.download(this.chosen())),
      button("delete", "gallery.delete", () => this.delete(this.chosen()), "danger"),
      button("close", "gallery.clear", () => this.grid.clearSelection()),
    );
  }

  async start() {
    const { live } = this.context;
    this.container.append(this.element);
    this.sizing = new ResizeObserver(() => {
      this.grid.inset = getComputedStyle(this.head).position === "sticky" ? this.head.offsetHeight : 0;
    });
    this.sizing.observe(this.head);
    this.subscriptions = [
      live.subscribe("image", (event) => this.arrived(event)),
      live.subscribe("resync", () => this.list.state === "ready" && this.list.readAgain()),
    ];
    await this.list.start(lastFilter);
    if (this.context.payload?.name) await this.openNamed(this.context.payload.name);
  }

  end() {
    for (const unsubscribe of this.subscriptions) unsubscribe();
    this.sizing.disconnect();
    this.box.close();
    this.search.end();
    this.element.remove();
  }

  // --- what is shown -----------------------------------------------------------------------------

  filter(filter) {
    lastFilter = filter;
    this.grid.clearSelection();
    this.list.start(filter);
  }

  arrived(event) {
    // An empty gallery has no place that could move.
    const isAtTop = this.grid.isAtTop || !this.list.images.length;
    this.list.take(event, isAtTop && !this.box.isOpen);
    if (event.change === "removed") this.box.refresh([event.image.name]);
    else this.box.refresh();
  }

  changed(kind) {
    const { list, grid } = this;
    if (kind !== "state") {
      const isNew = kind === "added" && grid.isAtTop;
      grid.show(list.images, { total: list.total, keepsPlace: kind !== "reset" && !isNew });
      if (isNew) grid.scrollToTop();
    }
    this.showState();
    this.box.refresh();
  }

  showState() {
    const { list } = this;
    const { t } = this.context;
    this.search.setTotal(list.state === "ready" ? list.total : null);
    this.waiting.hidden = !(list.state === "loading" || (list.state === "ready" && !list.isComplete));
    this.grid.hidden = !list.images.length;
    this.chip.hidden = !list.waiting.length;
    this.chip.textContent = t("gallery.new", { count: list.waiting.length });
    this.showMessage();
    this.showSelection();
  }

  showMessage() {
    const { list, message } = this;
    const { t } = this.context;
    message.hidden = false;
    if (list.state === "failed") {
      this.say("alert", t("gallery.failed"), list.error.message, t("common.retry"), () => this.tryAgain());
    } else if (list.state === "ready" && !list.images.length && this.search.isActive) {
      this.say("search", t("gallery.none_found"), t("gallery.none_found_text"), t("gallery.show_all"), () =>
        this.search.clear(),
      );
    } else if (list.state === "ready" && !list.images.length) {
      this.say("image", t("gallery.empty"), t("gallery.empty_text"), t("gallery.draw_first"), () =>
        this.context.navigate("draw"),
      );
    } else {
      message.hidden = true;
      message.replaceChildren();
    }
  }

  say(name, title, text, action, onclick) {
    this.message.replaceChildren(
      icon(name, { size: 48 }),
      h("h2", {}, title),
      h("p", { dir: "auto" }, text),
      h("button", { type: "button", class: "button primary", onclick }, action),
    );
  }

  tryAgain() {
    this.list.state = this.list.images.length ? "ready" : "loading";
    this.showState();
    this.list.more();
  }

  readMore() {
    if (this.list.state === "ready") this.list.more();
  }

  showNew() {
    this.grid.scrollToTop();
    this.list.showWaiting();
    this.grid.scrollToTop();
  }

  describe(image) {
    const { t } = this.context;
    const prompt = image.prompt ? shorten(image.prompt) : t("gallery.picture");
    const at = image.created ? dateTime(image.created) : "";
    const favourite = image.favourite ? t("gallery.is_favourite") : "";
    return [prompt, image.model, at, favourite].filter(Boolean).join(", ");
  }

  // --- one picture -------------------------------------------------------------------------------

  open(name) {
    const { list } = this;
    this.box.open({ images: () => list.images, total: () => list.total, more: () => this.readMore() }, name);
  }

  /** The image that another view names, which may be far down the list. */
  async openNamed(name) {
    if (this.list.find(name)) {
      this.open(name);
      return;
    }
    try {
      const image = await this.context.api.request(pathOf(name));
      this.box.open({ images: () => [image] }, name);
    } catch (error) {
      this.problem(error);
    }
  }

  /** After the whole screen: the picture that was shown last has the focus. */
  returnTo(name) {
    const index = name === null ? -1 : this.list.indexOf(name);
    if (index >= 0 && this.element.isConnected) this.grid.focusAt(index);
  }

  act({ action, name }) {
    const images = this.grid.selection.size ? this.chosen() : [this.list.find(name)].filter(Boolean);
    if (action === "favourite") this.favourite(images);
    else if (action === "delete") this.delete(images);
    else {
      this.open(name);
      this.box.showDetails();
    }
  }

  // --- what is selected --------------------------------------------------------------------------

  chosen() {
    return this.list.images.filter((image) => this.grid.selection.has(image.name));
  }

  showSelection() {
    const count = this.grid.selection.size;
    this.bar.hidden = !count;
    this.search.element.hidden = Boolean(count);
    this.selected.textContent = count ? this.context.t("gallery.selected", { count }) : "";
    if (count) {
      const isAll = this.chosen().every((image) => image.favourite);
      this.favouriteButton.lastChild.textContent = this.context.t(isAll ? "gallery.unfavourite" : "gallery.favourite");
    }
  }

  replaced(images) {
    for (const image of images) if (image) this.list.replace(image);
  }

  async favourite(images) {
    const { api, t, announce } = this.context;
    const favourite = !images.every((image) => image.favourite);
    try {
      this.replaced(await setFavourite(api, images, favourite));
      announce(t(favourite ? "gallery.favourite_now" : "gallery.no_favourite_now"));
    } catch (error) {
      this.problem(error);
    }
  }

  async download(images) {
    const { api, t, toast } = this.context;
    try {
      if (images.length > 20) toast(t("gallery.packing", { count: images.length }));
      await download(api, images);
    } catch (error) {
      this.problem(error instanceof RangeError ? { message: t("gallery.too_many") } : error);
    }
  }

  async delete(images) {
    const { t, api, toast, confirm } = this.context;
    if (!images.length) return;
    const title = t("gallery.delete_question", { count: images.length });
    if (!(await confirm(title, t("gallery.delete_text"), { action: t("gallery.delete"), danger: true }))) return;
    const next = this.list.indexOf(images[0].name);
    const { names, error } = await deleteImages(api, images);
    this.grid.clearSelection();
    this.list.remove(names);
    if (this.list.images.length) this.grid.focusAt(Math.min(next, this.list.images.length - 1));
    if (names.length) toast(t("gallery.deleted", { count: names.length }));
    if (error) this.problem(error);
  }

  problem(error) {
    const { t, toast } = this.context;
    toast(error.status === 404 ? t("gallery.gone") : error.message || t("gallery.failed"), { kind: "error" });
  }
}

function shorten(text) {
  return text.length > DESCRIPTION ? `${text.slice(0, DESCRIPTION)}…` : text;
}
