// The models by family, with a search.

import { h, icon } from "../dom.js";
import { t } from "../text.js";

const MOST_SHOWN = 200;

/** How ready a model is: {kind, text} with kind "good", "warn", "bad" or "neutral". */
export function readiness(model) {
  if (!model.tasks.length) return { kind: "bad", text: t("catalogue.not_drawable") };
  if (model.licence.state === "denied") return { kind: "bad", text: t("catalogue.denied") };
  const { engine } = model;
  if (!engine) return { kind: "neutral", text: t("catalogue.unknown") };
  if (engine.ready) {
    return engine.fits_gpu === false
      ? { kind: "warn", text: t("catalogue.too_large") }
      : { kind: "good", text: t("catalogue.ready") };
  }
  if (engine.needs_comfyui) return { kind: "warn", text: t("catalogue.needs_comfyui", { version: engine.needs_comfyui }) };
  if (engine.files?.length) return { kind: "warn", text: t("catalogue.files_missing", { count: engine.files.length }) };
  return { kind: "warn", text: t("catalogue.not_ready") };
}

/** `[[family, models], …]` in the order of the catalogue. */
export function byFamily(models) {
  const families = new Map();
  for (const model of models) {
    const name = model.family ?? "";
    if (!families.has(name)) families.set(name, []);
    families.get(name).push(model);
  }
  return [...families];
}

/** Whether each word of the search is in the model's names. */
export function isFound(model, search) {
  const text = [model.id, model.name, model.family, ...(model.aliases ?? []), model.licence.name].join(" ").toLocaleLowerCase();
  return search.toLocaleLowerCase().split(/\s+/).every((word) => text.includes(word));
}

export class ModelList {
  /** `onChoose(id)` */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.models = [];
    this.search = h("input", {
      type: "search",
      id: "catalogue-search",
      "aria-label": t("catalogue.search"),
      placeholder: t("catalogue.search"),
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.fill(),
    });
    this.readyOnly = h("input", { type: "checkbox", id: "catalogue-ready", onchange: () => this.fill() });
    this.groups = h("div", { class: "model-groups" });
    this.count = h("p", { class: "hint", role: "status" });
    this.element = h(
      "nav",
      { class: "catalogue-models panel", "aria-label": t("catalogue.models") },
      h("div", { class: "model-search" }, h("span", { class: "search-text" }, icon("search", { size: 18 }), this.search)),
      h("div", { class: "model-filter" }, h("label", { for: "catalogue-ready" }, this.readyOnly, t("catalogue.ready_only")), this.count),
      this.groups,
    );
  }

  show(models, chosen) {
    this.models = models;
    this.chosen = chosen;
    this.fill();
  }

  fill() {
    const search = this.search.value.trim();
    const found = this.models.filter(
      (model) => (!search || isFound(model, search)) && (!this.readyOnly.checked || model.engine?.ready),
    );
    const shown = found.slice(0, MOST_SHOWN);
    this.count.textContent = t("catalogue.count", { count: found.length });
    this.groups.replaceChildren(
      ...byFamily(shown).map(([family, models]) =>
        h("section", { class: "model-group" }, h("h2", { dir: "auto" }, family || t("catalogue.no_family")), h("ul", {}, ...models.map((model) => this.item(model)))),
      ),
    );
    if (found.length > shown.length) this.groups.append(h("p", { class: "hint" }, t("catalogue.more", { count: found.length - shown.length })));
    if (!found.length) this.groups.append(h("p", { class: "hint" }, t("catalogue.none_found")));
  }

  item(model) {
    const { kind, text } = readiness(model);
    return h(
      "li",
      {},
      h(
        "a",
        { href: `#catalogue/${encodeURIComponent(model.id)}`, class: "model-item", dataset: { id: model.id }, "aria-current": model.id === this.chosen ? "true" : null, onclick: (event) => this.clicked(event, model.id) },
        h("span", { class: "model-dot", dataset: { kind }, title: text, role: "img", "aria-label": text }),
        h("span", { class: "catalogue-name" }, h("span", { dir: "auto" }, model.name ?? model.id), h("span", { class: "model-id" }, model.id)),
      ),
    );
  }

  clicked(event, id) {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // a new tab
    event.preventDefault();
    this.onChoose(id);
  }

  mark(id) {
    this.chosen = id;
    for (const item of this.groups.querySelectorAll(".model-item")) {
      if (item.dataset.id === id) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
  }
}
