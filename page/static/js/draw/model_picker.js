// The button that shows the chosen model, and opens the dialog in which another is found.

import { openDialog } from "../dialogs.js";
import { h, icon, iconButton, replaceChildren } from "../dom.js";
import { addStylesheet } from "../stylesheets.js";
import { gigabytes, t } from "../text.js";

/**
 * {element, show(model), refresh()}. `models` is createModels(); `onChoose(model)`; `pulls`: createPulls(); `onError(error)` if
 * the list could not be read.
 */
export function createModelPicker({ models, onChoose, onError, pulls, waitsForSwitch }) {
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
  let isOpening = false;

  function refresh() {
    if (model) {
      name.textContent = model.name ?? model.id;
      replaceChildren(facts, badges(model, models.stateOf(model)), waitsForSwitch() && switchBadge());
    }
    dialogContent?.refresh();
  }

  async function openPicker() {
    if (isOpening) return;
    isOpening = true;
    try {
      const [{ pickerContent }] = await Promise.all([import("./model_dialog.js"), models.listed(), addStylesheet("models")]);
      if (element.isConnected) showDialog(pickerContent);
    } catch (error) {
      onError(error);
    } finally {
      isOpening = false;
    }
  }

  function showDialog(pickerContent) {
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

function switchBadge() {
  return badge("warn", t("draw.model.badge_switch"), t("draw.model.switch_title"));
}

export function badge(kind, text, title = null) {
  return h("span", { class: "badge", dataset: { kind }, title }, text);
}

/** [kind, text, title]: non-commercial ones stand out. */
function licenceBadge({ id, name, commercial }) {
  const uses = { true: "draw.licence.commercial", false: "draw.licence.noncommercial", conditional: "draw.licence.conditional" };
  const use = uses[String(commercial)] ?? "draw.licence.unknown";
  const short = id ?? name;
  const text = commercial === false ? t(use) : short.length > 32 ? `${short.slice(0, 31)}…` : short;
  return [commercial === false ? "warn" : "", text, `${name} · ${t(use)}`];
}
