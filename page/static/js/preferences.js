// The menu of this browser's own choices: theme, language, key.

import { h, icon } from "./dom.js";
import { setting } from "./store.js";
import { chosenLanguage, language, LANGUAGES, t } from "./text.js";

const theme = setting("theme", "system");

function applyTheme(value) {
  if (value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
}

/** Fills `element`. `onLanguage()` shows everything anew; `keys`: {get, change, forget}. */
export function startPreferences(element, { onLanguage, keys }) {
  applyTheme(theme.get());
  const menu = h("div", { class: "menu", id: "preferences-menu", popover: true });
  const button = h(
    "button",
    { type: "button", class: "icon-button", popovertarget: "preferences-menu", "aria-label": t("common.preferences"), title: t("common.preferences") },
    icon("settings"),
  );
  const show = () => menu.replaceChildren(choices(t("common.theme"), themes(), theme.get(), (value) => {
      theme.set(value);
      applyTheme(value);
    }),
    choices(t("common.language"), Object.entries(LANGUAGES), language, (value) => {
      chosenLanguage.set(value);
      onLanguage();
    }),
    ...keyPart(keys),
  );
  menu.addEventListener("beforetoggle", (event) => event.newState === "open" && show());
  element.replaceChildren(button, menu);
}

function themes() {
  return ["system", "light", "dark"].map((value) => [value, t(`common.theme_${value}`)]);
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
      h("button", { type: "button", class: "button", onclick: keys.change }, t("common.key_change")),
      h("button", { type: "button", class: "button", onclick: keys.forget }, t("common.key_forget")),
    ),
  ];
}
