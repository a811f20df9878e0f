// The menu of this browser's own choices: theme, language, key.

import { h } from "../dom.js";
import { setting } from "../store.js";
import { chosenLanguage, language, LANGUAGES, t } from "../text.js";

const theme = setting("theme", "system");

function applyTheme(value) {
  if (value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
}

/** Fills the menu `element`. `onLanguage()` shows everything anew; `keys`: {get, change, forget}. */
export function fillMenu(element, { onLanguage, keys }) {
  element.replaceChildren(
    choices(t("menu.theme"), themes(), theme.get(), (value) => {
      theme.set(value);
      applyTheme(value);
    }),
    choices(t("menu.language"), Object.entries(LANGUAGES), language, (value) => {
      chosenLanguage.set(value);
      onLanguage();
    }),
    ...keyPart(keys),
  );
}

function themes() {
  return ["system", "light", "dark"].map((value) => [value, t(`menu.theme_${value}`)]);
}

function choices(label, entries, chosen, choose) {
  const name = `choice-${label}`;
  return h(
    "fieldset",
    { class: "choices" },
    h("legend", {}, label),
    h(
      "div",
      { class: "segments" },
      entries.map(([value, text]) =>
        h(
          "label",
          {},
          h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => choose(value) }),
          h("span", {}, text),
        ),
      ),
    ),
  );
}

function keyPart(keys) {
  if (!keys.get()) return [];
  return [
    h(
      "div",
      { class: "menu-actions" },
      h("button", { type: "button", class: "button", onclick: keys.change }, t("menu.key_change")),
      h("button", { type: "button", class: "button", onclick: keys.forget }, t("menu.key_forget")),
    ),
  ];
}
