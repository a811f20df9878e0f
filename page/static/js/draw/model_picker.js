// The button that shows the chosen model, and the dialog in which another is found.

import { openDialog } from "../dialogs.js";
import { h, icon, iconButton, replaceChildren } from "../dom.js";
import { bytes, gigabytes, t } from "../text.js";

const ORDER = ["ready", "missing", "licence", "blocked"];
const MOST_SHOWN = 200;

/**
 * {element, show(model), refresh()}. `models` is createModels(); `onChoose(model)`; `pulls`: createPulls().
 */
export function createModelPicker({ models, onChoose, pulls, waitsForSwitch }) {
  let model = null;
  const name = h("span", { class: "model-name", dir: "auto" });
  const facts = h("span", { class: "model-facts" });
  const element = h(
    "button",
    { type: "button", class: "model-button", "aria-haspopup": "dialog", disabled: true, onclick: () => openPicker() },
    h("span", { class: "model-words" }, h("span", { class: "visually-hidden" }, t("draw.model.button")), name, facts),
    icon("chevronDown"),
  );
  let dialogContent = null;

  function refresh() {
    if (model) {
      name.textContent = model.name ?? model.id;
      replaceChildren(facts, badges(model, models.stateOf(model)), waitsForSwitch() && switchBadge());
    }
    dialogContent?.refresh();
  }

  function openPicker() {
    dialogContent = pickerContent({
      models,
      chosen: model,
      pulls,
      waitsForSwitch,
      choose: (chosen) => {
        dialog.close();
        onChoose(chosen);
      },
    });
    const dialog = openDialog(t("draw.model.title"), dialogContent.element, {
      className: "model-dialog",
      onclose: () => {
        dialogContent = null;
        element.focus();
      },
    });
    // Phones have no Escape.
    dialog.append(iconButton("close", t("common.close"), { class: "icon-button dialog-close", onclick: () => dialog.close() }));
    dialogContent.focus();
  }

  return {
    element,
    refresh,
    show(next) {
      model = next;
      element.disabled = false;
      refresh();
    },
  };
}

function pickerContent({ models, chosen, pulls, waitsForSwitch, choose }) {
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
    count.textContent = !found.length ? t("draw.model.none", { text: search.value }) : hidden > 0 ? t("catalogue.more", { count: hidden }) : "";
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

/** What a model needs and may be used for. */
export function badges(model, state) {
  return [
    state.kind === "missing" && badge("warn", t("draw.model.badge_missing")),
    state.kind === "blocked" && badge("bad", t("draw.model.badge_blocked")),
    state.kind === "licence" && badge("bad", t("draw.model.badge_licence")),
    state.fitsGpu === false && badge("warn", t("draw.model.badge_memory")),
    model.disk_gb && badge("", gigabytes(model.disk_gb), t("draw.model.disk")),
    model.min_vram_gb && badge("", t("draw.model.vram", { size: gigabytes(model.min_vram_gb) }), t("draw.model.vram_title")),
    model.licence?.name && badge(...licenceBadge(model.licence)),
  ];
}

function tasks(model) {
  return model.tasks.includes("generate") ? null : badge("accent", t("draw.model.needs_image"));
}

function switchBadge() {
  return badge("warn", t("draw.model.badge_switch"), t("draw.model.switch_title"));
}

function badge(kind, text, title = null) {
  return h("span", { class: "badge", dataset: { kind }, title }, text);
}

/** [kind, text, title]: non-commercial ones stand out. */
function licenceBadge({ id, name, commercial }) {
  const use = { true: "draw.licence.commercial", false: "draw.licence.noncommercial" }[String(commercial)] ?? "draw.licence.conditional";
  const short = id ?? name;
  const text = commercial === false ? t(use) : short.length > 32 ? `${short.slice(0, 31)}…` : short;
  return [commercial === false ? "warn" : "", text, `${name} · ${t(use)}`];
}

/** A button that gets a model's files, or how far that is. */
export function pullButton(model, state, pulls) {
  const running = pulls.of(model);
  if (running) {
    const share = running.size ? running.received / running.size : null;
    return h("span", { class: "badge", dataset: { kind: "accent" } }, share === null ? t("draw.model.pulling") : t("draw.model.pulling_share", { percent: Math.floor(share * 100) }));
  }
  if (!pulls.mayStart) return null;
  const label = state.bytes ? t("draw.model.pull_size", { size: bytes(state.bytes) }) : t("draw.model.pull");
  return h("button", { type: "button", class: "button small", onclick: () => pulls.start(model) }, icon("download", { size: 16 }), label);
}
