// <easel-catalogue>: the models by family, and one of them with its files, licence and graph.

import "../more_icons.js";
import { h, icon } from "../dom.js";
import { ModelList } from "./model_list.js";
import { ModelPage } from "./model_page.js";

const RELOAD_MS = 500;

let lastScroll = 0;

export async function mount(container, context) {
  const view = document.createElement("easel-catalogue");
  view.context = context;
  container.append(view);
  await view.start();
  return { unmount: () => view.remove() };
}

/** The model that the address names, as in #catalogue/sdxl-turbo; null if it names none. */
function modelInAddress() {
  const [, name] = location.hash.slice(1).split(/\/(.*)/s);
  try {
    return name ? decodeURIComponent(name) : null;
  } catch {
    return null;
  }
}

class EaselCatalogue extends HTMLElement {
  async start() {
    const { t, live } = this.context;
    this.list = new ModelList((id) => this.choose(id));
    this.detail = h("div", { class: "model-detail" });
    this.replaceChildren(h("h1", { class: "visually-hidden" }, t("common.title_catalogue")), this.list.element, this.detail);
    this.subscriptions = [
      live.subscribe("catalogue", () => this.reloadSoon()),
      live.subscribe("pulls", (pulls) => this.pullsChanged(pulls)),
      live.subscribe("status", (status) => this.statusChanged(status)),
      live.subscribe("resync", () => this.reloadSoon()),
    ];
    await this.load();
  }

  disconnectedCallback() {
    for (const unsubscribe of this.subscriptions ?? []) unsubscribe();
    clearTimeout(this.reloading);
  }

  async load() {
    const { api, t } = this.context;
    try {
      const { data } = await api.request("/v1/models?type=image");
      this.models = data.filter((model) => !model.slot_of);
    } catch (error) {
      this.say(error.message || t("catalogue.failed"), () => this.load());
      return;
    }
    const wanted = this.shown ?? this.context.payload?.model ?? modelInAddress();
    this.list.show(this.models, wanted);
    if (wanted) await this.open(wanted, { isReload: Boolean(this.shown) });
    else this.welcome();
  }

  /** On a wide screen the first model; on a narrow one the list alone. */
  async welcome() {
    const { t } = this.context;
    if (!this.models.length) {
      this.say(t("catalogue.empty"), () => this.load());
      return;
    }
    this.classList.remove("has-model");
    scrollTo(0, lastScroll);
    const first = this.models.find((model) => model.engine?.ready) ?? this.models[0];
    if (matchMedia("(min-width: 901px)").matches) await this.open(first.id, { isFirst: true });
  }

  say(text, again) {
    const { t } = this.context;
    this.detail.replaceChildren(
      h("div", { class: "empty" }, h("p", { dir: "auto" }, text), h("button", { type: "button", class: "button", onclick: again }, t("common.retry"))),
    );
    this.classList.add("has-model");
  }

  choose(id) {
    lastScroll = scrollY;
    // The address names the model, so that it can be shared and Back leads to the list.
    history.pushState(null, "", `#catalogue/${encodeURIComponent(id)}`);
    this.open(id);
  }

  async open(id, { isReload = false, isFirst = false } = {}) {
    const { api, t } = this.context;
    this.wanted = id;
    let model;
    try {
      model = await api.request(`/v1/models/${id.split("/").map(encodeURIComponent).join("/")}`);
    } catch (error) {
      if (this.wanted === id && !isReload) this.say(error.message || t("catalogue.failed"), () => this.open(id));
      return;
    }
    if (this.wanted !== id || !this.isConnected) return;
    const text = JSON.stringify({ ...model, created: 0 });
    if (isReload && text === this.text) return; // nothing that is shown has changed
    this.text = text;
    this.shown = model.id;
    this.page = new ModelPage(this.context, model);
    const back = h("a", { href: "#catalogue", class: "back" }, icon("arrowLeft", { size: 18 }), h("span", {}, t("catalogue.back")));
    this.detail.replaceChildren(back, this.page.element);
    this.classList.add("has-model");
    this.list.mark(model.id);
    if (isReload || isFirst) return;
    scrollTo(0, 0);
    this.page.element.querySelector("h1").focus({ preventScroll: true });
  }

  reloadSoon() {
    clearTimeout(this.reloading);
    this.reloading = setTimeout(() => this.models && this.load(), RELOAD_MS);
  }

  pullsChanged(pulls) {
    this.page?.showPull();
    // Files have arrived: what is there has changed.
    const done = JSON.stringify((pulls ?? []).map((pull) => [pull.id, pull.state]));
    if (this.pulls !== undefined && this.pulls !== done) this.reloadSoon();
    this.pulls = done;
  }

  /** Which models are ready is part of the status. */
  statusChanged(status) {
    this.page?.graph.editor.statusChanged(status);
    const ready = JSON.stringify((status.models ?? []).map((model) => [model.id, model.ready, model.fits_gpu, model.missing?.length]));
    if (this.ready !== undefined && this.ready !== ready) this.reloadSoon();
    this.ready = ready;
  }
}

customElements.define("easel-catalogue", EaselCatalogue);
