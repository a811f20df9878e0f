// Dialogs: a question, and the key.

import { h } from "./dom.js";
import { t } from "./text.js";

/** Opens a modal <dialog> with `children`; it is removed when it closes. `onclose(returnValue)`. */
export function openDialog(title, children, { onclose = () => {}, className = "" } = {}) {
  const id = `dialog-${Math.random().toString(36).slice(2)}`;
  const dialog = h(
    "dialog",
    { class: `dialog ${className}`, "aria-labelledby": id },
    h("h2", { id }, title),
    children,
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onclose(dialog.returnValue);
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Asks before something that cannot be undone. Its promise is a boolean. */
export function confirm(title, text, { action, danger = false }) {
  return new Promise((resolve) => {
    const close = (value) => dialog.close(value);
    const dialog = openDialog(
      title,
      [
        h("p", {}, text),
        h(
          "div",
          { class: "dialog-actions" },
          h("button", { type: "button", class: "button", onclick: () => close("no") }, t("common.cancel")),
          h(
            "button",
            { type: "button", class: danger ? "button danger" : "button primary", onclick: () => close("yes") },
            action,
          ),
        ),
      ],
      { onclose: (value) => resolve(value === "yes") },
    );
  });
}

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
    const submit = h("button", { type: "submit", class: "button primary" }, t("common.key_use"));
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
        } else problem.textContent = t("common.key_wrong");
      } catch {
        problem.textContent = t("common.unreachable");
      }
      submit.disabled = false;
    };
    const form = h(
      "form",
      { onsubmit: send },
      h("p", {}, t("common.key_text")),
      h("label", { for: "api-key" }, t("common.key")),
      input,
      problem,
      h("p", { class: "hint", id: "key-hint" }, t("common.key_hint")),
      h(
        "div",
        { class: "dialog-actions" },
        h("button", { type: "button", class: "button", onclick: () => dialog.close() }, t("common.cancel")),
        submit,
      ),
    );
    const dialog = openDialog(t("common.key_title"), form, { onclose: () => resolve(key) });
    signal?.addEventListener("abort", () => dialog.close());
    input.focus();
  });
}
