// An error in plain words with what helps; the code is small, for who wants to look it up.

import { h, icon } from "../dom.js";
import { hasText, t } from "../text.js";

/** `error`: {code, message, details}; `remedies`: [{label, run, primary}] as buttons. */
export function errorCard(error, remedies = []) {
  const title = [`draw.error.${error.code}`, `draw.error.${error.code.split(".")[0]}`].find(hasText) ?? "draw.error.other";
  return h(
    "div",
    { class: "error-card", role: "group", "aria-label": t(title) },
    icon("alert"),
    h(
      "div",
      {},
      h("h3", {}, t(title)),
      error.message && h("p", { dir: "auto" }, error.message),
      error.original && h("p", { class: "hint", dir: "auto", lang: "en" }, error.original),
      remedies.length > 0 &&
        h(
          "div",
          { class: "error-actions" },
          remedies.map(({ label, run, primary }) => h("button", { type: "button", class: primary ? "button small primary" : "button small", onclick: run }, label)),
        ),
      h("p", { class: "error-code" }, h("code", {}, error.code)),
    ),
  );
}
