// Short messages at the edge of the screen, and what screen readers are told.

import { h, iconButton } from "./dom.js";
import { t } from "./text.js";

/**
 * Shows `message` for some seconds, `kind` "info", "success" or "error" (which stays longer). `action`: {label, run}.
 * Returns the function that removes it.
 */
export function toast(message, { kind = "info", action = null, seconds = kind === "error" ? 12 : 6 } = {}) {
  const element = h(
    "div",
    { class: "toast", dataset: { kind } },
    h("p", {}, message),
    action &&
      h("button", { type: "button", class: "link-button", onclick: () => (remove(), action.run()) }, action.label),
    iconButton("close", t("common.close"), { onclick: () => remove() }),
  );
  const remove = () => element.remove();
  let timer = setTimeout(remove, seconds * 1000);
  // Who reads it or moves to its button is not hurried.
  for (const event of ["pointerenter", "focusin"]) element.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"])
    element.addEventListener(event, () => (clearTimeout(timer), (timer = setTimeout(remove, seconds * 1000))));
  document.getElementById("toasts").append(element);
  announce(message, { assertive: kind === "error" });
  return remove;
}

/** A file of the page is missing: the network is away, or the server has another version of the page. */
export function offerReload() {
  toast(t("common.view_missing"), { kind: "error", action: { label: t("common.reload"), run: () => location.reload() } });
}

/** Tells screen readers `message`: politely, or at once. */
export function announce(message, { assertive = false } = {}) {
  const region = document.getElementById(assertive ? "live-assertive" : "live-polite");
  // The same text twice would not be read again.
  region.textContent = region.textContent === message ? `${message}\u00a0` : message;
}
