// Search of the gallery: text, model, time, favourites.

import { h, icon } from "../dom.js";

const PAUSE_MS = 250;
const DAY_S = 86_400;

/** Unix time at which the day `days` before today begins, here. */
function dayStart(days) {
  const day = new Date();
  day.setHours(0, 0, 0, 0);
  day.setDate(day.getDate() - days);
  return day.getTime() / 1000;
}

/** Unix time at which a date field's day begins; undefined for an empty one. */
function timeOf(value) {
  const [year, month, day] = value.split("-").map(Number);
  return day ? new Date(year, month - 1, day).getTime() / 1000 : undefined;
}

export class SearchBar {
  /** `onChange(filter)` with `{q, model, from, to, favourite}`, each only if it is set. */
  constructor(context, filter, onChange) {
    this.context = context;
    this.onChange = onChange;
    this.build(filter);
    this.fillModels(filter.model);
  }

  build(filter) {
    const { t } = this.context;
    const changed = () => this.changed();
    this.text = h("input", {
      type: "search",
      id: "gallery-search",
      placeholder: t("gallery.search"),
      "aria-label": t("gallery.search"),
      dir: "auto",
      autocomplete: "off",
      spellcheck: "false",
      value: filter.q ?? "",
      oninput: () => this.typed(),
      onsearch: changed,
    });
    this.model = h("select", { "aria-label": t("gallery.by_model"), onchange: changed }, h("option", { value: "" }, t("gallery.all_models")));
    const when = (value) => h("option", { value, selected: value === (filter.when ?? "") }, t(`gallery.when_${value || "any"}`));
    this.when = h(
      "select",
      { "aria-label": t("gallery.by_date"), onchange: () => this.whenChanged() },
      ["", "today", "week", "month", "dates"].map(when),
    );
    this.from = h("input", { type: "date", "aria-label": t("gallery.from"), onchange: changed, value: filter.fromDay ?? "" });
    this.to = h("input", { type: "date", "aria-label": t("gallery.to"), onchange: changed, value: filter.toDay ?? "" });
    this.dates = h("span", { class: "search-dates", hidden: filter.when !== "dates" }, this.from, h("span", {}, "–"), this.to);
    this.favourite = h(
      "button",
      { type: "button", class: "toggle", "aria-pressed": String(Boolean(filter.favourite)), onclick: () => this.toggleFavourite() },
      icon("heart", { size: 18 }),
      h("span", {}, t("gallery.favourites")),
    );
    this.total = h("p", { class: "search-total", role: "status" });
    this.element = h(
      "form",
      { class: "search-bar", role: "search", onsubmit: (event) => event.preventDefault() },
      h("span", { class: "search-text" }, icon("search", { size: 18 }), this.text),
      this.model,
      this.when,
      this.dates,
      this.favourite,
      this.total,
    );
  }

  async fillModels(selected) {
    try {
      const { data } = await this.context.api.request("/v1/models?type=image");
      const options = data
        .filter((model) => !model.slot_of)
        .map((model) => h("option", { value: model.id, selected: model.id === selected }, model.name ?? model.id));
      this.model.append(...options);
    } catch {
      this.model.hidden = true; // the search works without the list
    }
  }

  typed() {
    clearTimeout(this.pause);
    this.pause = setTimeout(() => this.changed(), PAUSE_MS);
  }

  whenChanged() {
    this.dates.hidden = this.when.value !== "dates";
    this.changed();
  }

  toggleFavourite() {
    const isPressed = this.favourite.getAttribute("aria-pressed") === "true";
    this.favourite.setAttribute("aria-pressed", String(!isPressed));
    this.changed();
  }

  changed() {
    clearTimeout(this.pause);
    const filter = this.value();
    const text = JSON.stringify(filter);
    if (text === this.last) return;
    this.last = text;
    this.onChange(filter);
  }

  value() {
    const filter = {
      q: this.text.value.trim(),
      model: this.model.value,
      favourite: this.favourite.getAttribute("aria-pressed") === "true",
      when: this.when.value,
      ...this.period(),
    };
    return Object.fromEntries(Object.entries(filter).filter(([, value]) => value));
  }

  period() {
    const days = { today: 0, week: 6, month: 29 }[this.when.value];
    if (days !== undefined) return { from: dayStart(days) };
    if (this.when.value !== "dates") return {};
    const to = timeOf(this.to.value);
    // The last day counts to its end; a day with a change of the clock is a little longer or shorter.
    return {
      from: timeOf(this.from.value),
      to: to === undefined ? undefined : to + DAY_S,
      fromDay: this.from.value,
      toDay: this.to.value,
    };
  }

  get isActive() {
    return Object.keys(this.value()).length > 0;
  }

  clear() {
    this.text.value = "";
    this.model.value = "";
    this.when.value = "";
    this.dates.hidden = true;
    this.favourite.setAttribute("aria-pressed", "false");
    this.changed();
  }

  setTotal(total) {
    this.total.textContent = total === null ? "" : this.context.t("gallery.total", { count: total });
  }

  end() {
    clearTimeout(this.pause);
  }
}
