// What the dialog shows in which a model is chosen: all of them by what can be done with them now, and a search.

import "../more_icons.js";
import { h, icon, replaceChildren } from "../dom.js";
import { bytes, t } from "../text.js";
import { badge, badges } from "./model_picker.js";

const ORDER = ["ready", "missing", "licence", "blocked"];
const MOST_SHOWN = 200;

/** {element, focus(), refresh()}. `chosen`: the present model; `choose(model)`. The list of `models` is read already. */
export function pickerContent({ models, chosen, pulls, waitsForSwitch, choose }) {
  const search = h("input", {
    type: "search",
    "aria-label": t("draw.model.search"),
    placeholder: t("draw.model.search"),
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => show(),
    onkeydown: (event) => {
      if (event.key === "Enter") list.querySelector(".model-choice")?.click();
      else if (event.key === "ArrowDown") list.querySelector(".model-choice")?.focus();
      else return;
      event.preventDefault();
    },
  });
  const count = h("p", { class: "hint", role: "status" });
  const list = h("div", { class: "model-list", onkeydown: moveByArrows });
  let shown = null;

  function show() {
    const found = search.value.trim() ? models.list.get().filter(matches(search.value)) : models.list.get();
    const groups = new Map(ORDER.map((kind) => [kind, []]));
    for (const model of found) {
      const state = models.stateOf(model);
      groups.get(state.kind).push([model, state]);
    }
    shown = stateOfList();
    let free = MOST_SHOWN;
    for (const rows of groups.values()) {
      rows.splice(Math.max(0, free));
      free -= rows.length;
    }
    replaceChildren(
      list,
      [...groups]
        .filter(([, rows]) => rows.length)
        .map(([kind, rows]) => [
          h("h3", { id: `models-${kind}` }, kind === "ready" && waitsForSwitch() ? t("draw.model.ready_switch") : t(`draw.model.${kind}`)),
          h("ul", { "aria-labelledby": `models-${kind}` }, rows.map(([model, state]) => h("li", {}, row(model, state)))),
        ]),
    );
    const hidden = found.length - MOST_SHOWN;
    count.textContent = !found.length ? t("draw.model.none", { text: search.value }) : hidden > 0 ? t("draw.model.more", { count: hidden }) : "";
  }

  /** What the rows say that changes by itself. */
  function stateOfList() {
    return JSON.stringify([waitsForSwitch(), pulls.mayStart, models.list.get().map((model) => [model.id, models.stateOf(model), pulls.of(model)?.received])]);
  }

  function row(model, state) {
    const isChosen = model.id === chosen?.id;
    return [
      h(
        "button",
        { type: "button", class: "model-choice", "aria-current": isChosen ? "true" : null, dataset: { model: model.id }, onclick: () => choose(model) },
        h("span", { class: "model-words" }, h("span", { class: "model-name", dir: "auto" }, model.name ?? model.id), h("span", { class: "model-facts" }, badges(model, state), tasks(model))),
        isChosen && icon("check"),
      ),
      state.kind === "missing" && pullButton(model, state, pulls),
      state.reason && h("p", { class: "hint" }, state.reason),
    ];
  }

  function moveByArrows(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...list.querySelectorAll(".model-choice")];
    const next = buttons.indexOf(document.activeElement) + step;
    event.preventDefault();
    (buttons[next] ?? (step < 0 ? search : buttons.at(-1))).focus();
  }

  show();
  return {
    element: [search, count, list],
    focus() {
      search.focus();
      list.querySelector("[aria-current]")?.scrollIntoView({ block: "center" });
    },
    refresh() {
      // Not while somebody is in the list: the rows would be replaced under the focus.
      if (!list.contains(document.activeElement) && stateOfList() !== shown) show();
    },
  };
}

function matches(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return ({ id, name, family, aliases = [] }) => {
    const all = [id, name, family, ...aliases].join(" ").toLowerCase();
    return words.every((word) => all.includes(word));
  };
}

function tasks(model) {
  return model.tasks.includes("generate") ? null : badge("accent", t("draw.model.needs_image"));
}

/** A button that gets a model's files, or how far that is. */
function pullButton(model, state, pulls) {
  const running = pulls.of(model);
  if (running) {
    const share = running.size ? running.received / running.size : null;
    return h("span", { class: "badge", dataset: { kind: "accent" } }, share === null ? t("draw.model.pulling") : t("draw.model.pulling_share", { percent: Math.floor(share * 100) }));
  }
  if (!pulls.mayStart) return null;
  const label = state.bytes ? t("draw.model.pull_size", { size: bytes(state.bytes) }) : t("draw.model.pull");
  return h("button", { type: "button", class: "button small", onclick: () => pulls.start(model) }, icon("download", { size: 16 }), label);
}
