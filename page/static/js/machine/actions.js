// What the machine view can do, and why not: a key without the scope `operate` may look only.

import { h } from "../dom.js";

/**
 * A button that calls `run()` and shows its error below it. `{element, button, allow(reason), label(text)}`: `reason` is
 * why it cannot be pressed now, or null. Such a button stays in the order of the keyboard, so that its reason is read.
 */
export function actionButton(text, run, { kind = "", describedBy = null } = {}) {
  const problem = h("p", { class: "action-problem", role: "alert", hidden: true });
  const label = h("span", {}, text);
  let reason = null;
  const press = async () => {
    if (reason || button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    problem.hidden = true;
    try {
      await run();
    } catch (error) {
      problem.textContent = error.message || String(error.code ?? error);
      problem.hidden = false;
    }
    button.removeAttribute("aria-busy");
  };
  const button = h("button", { type: "button", class: `button ${kind}`, onclick: press, "aria-describedby": describedBy }, label);
  return {
    element: h("div", { class: "action" }, button, problem),
    button,
    allow(text) {
      if (text === reason) return;
      reason = text;
      if (reason) button.setAttribute("aria-disabled", "true");
      else button.removeAttribute("aria-disabled");
      button.title = reason ?? "";
    },
    label(text) {
      if (label.textContent !== text) label.textContent = text;
    },
  };
}
