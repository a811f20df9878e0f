// The dialog that asks for an API key.

import { openDialog } from "../dialogs.js";
import { h } from "../dom.js";
import { t } from "../text.js";

/** Asks for an API key until `works(key)`. Its promise is the key, or null; `signal` closes the dialog. */
export function askForKey(works, signal = null) {
  return new Promise((resolve) => {
    const problem = h("p", { class: "field-error", id: "key-problem", role: "alert" });
    const input = h("input", {
      type: "password",
      id: "api-key",
      autocomplete: "off",
      spellcheck: "false",
      required: true,
      "aria-describedby": "key-problem key-hint",
    });
    const submit = h("button", { type: "submit", class: "button primary" }, t("menu.key_use"));
    let key = null;
    const send = async (event) => {
      event.preventDefault();
      const candidate = input.value.trim();
      if (!candidate) return;
      submit.disabled = true;
      problem.textContent = "";
      try {
        if (await works(candidate)) {
          key = candidate;
          dialog.close();
        } else problem.textContent = t("menu.key_wrong");
      } catch {
        problem.textContent = t("common.unreachable");
      }
      submit.disabled = false;
    };
    const form = h(
      "form",
      { onsubmit: send },
      h("p", {}, t("menu.key_text")),
      h("label", { for: "api-key" }, t("menu.key")),
      input,
      problem,
      h("p", { class: "hint", id: "key-hint" }, t("menu.key_hint")),
      h(
        "div",
        { class: "dialog-actions" },
        h("button", { type: "button", class: "button", onclick: () => dialog.close() }, t("common.cancel")),
        submit,
      ),
    );
    const dialog = openDialog(t("menu.key_title"), form, { onclose: () => resolve(key) });
    signal?.addEventListener("abort", () => dialog.close());
    input.focus();
  });
}
