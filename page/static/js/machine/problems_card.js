// What is wrong with this installation's files: catalogue, settings, keys, counters. Hidden while nothing is.

import { h, icon } from "../dom.js";

/** file:line:column, as far as they are known. */
export function placeOf(error) {
  return [error.file, error.line, error.column].filter((part) => part !== null && part !== undefined && part !== "").join(":");
}

export class ProblemsCard {
  constructor({ t }) {
    this.t = t;
    this.list = h("ul", { class: "problems" });
    this.element = h(
      "section",
      { class: "card problems-card", "aria-labelledby": "machine-problems", hidden: true },
      h("h2", { id: "machine-problems" }, icon("alert"), h("span", {}, t("machine.problems"))),
      this.list,
    );
  }

  update(status) {
    const { t } = this;
    const { error, own_errors: own = [] } = status.catalogue ?? {};
    const problems = [
      ...(error ? [{ title: t("machine.catalogue_error"), ...error }] : []),
      ...(status.settings?.error ? [{ title: t("machine.settings_error"), ...status.settings.error }] : []),
      ...own.map((each) => ({ title: t("machine.own_error"), ...(typeof each === "string" ? { message: each } : each) })),
      ...(status.keys?.error ? [{ title: t("machine.keys_error"), message: status.keys.error }] : []),
      ...(status.metrics?.problem ? [{ title: t("machine.metrics_problem"), message: status.metrics.problem }] : []),
    ];
    const text = JSON.stringify(problems);
    if (text === this.text) return;
    this.text = text;
    this.element.hidden = !problems.length;
    this.list.replaceChildren(
      ...problems.map((problem) =>
        h(
          "li",
          { class: "problem" },
          h("h3", {}, problem.title),
          placeOf(problem) ? h("code", { class: "place" }, placeOf(problem)) : null,
          h("p", { dir: "auto" }, problem.message),
        ),
      ),
    );
  }
}
