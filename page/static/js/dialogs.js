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
