// The last switches of the GPU and what they cost.

import { h } from "../dom.js";
import { messageOf, seconds } from "../text.js";
import { ago, dateTime } from "../times.js";
import { phaseName } from "./gpu_card.js";

export class SwitchesCard {
  constructor({ t }) {
    this.t = t;
    this.rows = h("tbody", {});
    this.sum = h("p", { class: "hint" });
    this.table = h(
      "table",
      { class: "switches" },
      h("caption", { class: "visually-hidden" }, t("machine.switches")),
      h(
        "thead",
        {},
        h("tr", {}, ...["when", "direction", "reason", "took"].map((name) => h("th", { scope: "col" }, t(`machine.column_${name}`)))),
      ),
      this.rows,
    );
    this.none = h("p", { class: "hint" }, t("machine.no_switches"));
    this.element = h(
      "section",
      { class: "card switches-card", "aria-labelledby": "machine-switches" },
      h("h2", { id: "machine-switches" }, t("machine.switches")),
      this.sum,
      this.none,
      h("div", { class: "table-box", tabindex: "0", role: "group", "aria-labelledby": "machine-switches" }, this.table),
    );
  }

  update(status) {
    const gpus = status.gpus ?? [];
    const all = gpus.length < 2 ? (status.switches ?? []) : gpus.flatMap(({ name, switches }) => switches.map((each) => ({ ...each, gpu: name })));
    this.switches = [...all].sort((a, b) => b.at - a.at);
    const text = JSON.stringify(this.switches);
    const isKnown = text === this.text;
    this.text = text;
    this.element.hidden = !status.arbiter && !gpus.some((gpu) => gpu.arbiter) && !this.switches.length;
    this.table.parentElement.hidden = !this.switches.length;
    this.none.hidden = this.switches.length > 0;
    if (!isKnown) this.fill();
  }

  fill() {
    const { t } = this;
    const total = this.switches.reduce((sum, each) => sum + (each.seconds ?? 0), 0);
    const count = this.switches.length;
    this.sum.textContent = t("machine.switches_cost", { count, time: seconds(total), each: seconds(total / Math.max(1, count)) });
    this.sum.hidden = !count;
    this.longest = Math.max(1, ...this.switches.map((each) => each.seconds ?? 0));
    this.rows.replaceChildren(...this.switches.map((each) => this.row(each)));
  }

  row(each) {
    const { t } = this;
    const why = [each.gpu && t("machine.of_gpu", { name: each.gpu }), each.reason, each.who].filter(Boolean).join(" · ");
    const error = each.error ? h("p", { class: "problem-line", dir: "auto" }, messageOf(each.error) ?? each.error.code) : null;
    return h(
      "tr",
      {},
      h("td", {}, h("time", { title: dateTime(each.at), datetime: new Date(each.at * 1000).toISOString(), dataset: { at: each.at } }, ago(each.at))),
      h("td", {}, each.from ? `${this.short(each.from)} → ${this.short(each.to)}` : `→ ${this.short(each.to)}`),
      h("td", { dir: "auto" }, why, error),
      h("td", { class: "took" }, h("span", {}, typeof each.seconds === "number" ? seconds(each.seconds) : "–"), this.bar(each)),
    );
  }

  short(mode) {
    return this.t(mode === "inference" ? "machine.llms" : "machine.pictures");
  }

  /** The phases as parts of a bar, whose length is that of the switch beside the longest one. */
  bar(each) {
    const phases = (each.phases ?? []).filter((phase) => phase.seconds > 0);
    if (!phases.length) return null;
    const parts = phases.map((phase, index) => {
      const part = h("span", { class: "phase-part", dataset: { number: index % 6 }, title: `${phaseName(this.t, phase.name)}: ${seconds(phase.seconds)}` });
      part.style.setProperty("flex-grow", String(phase.seconds));
      return part;
    });
    const words = phases.map((phase) => `${phaseName(this.t, phase.name)} ${seconds(phase.seconds)}`).join(", ");
    const bar = h("span", { class: "phase-bar", role: "img", "aria-label": words }, ...parts);
    bar.style.setProperty("inline-size", `${Math.max(8, (100 * (each.seconds ?? 0)) / this.longest)}%`);
    return bar;
  }

  tick() {
    for (const element of this.rows.querySelectorAll("time")) {
      const text = ago(Number(element.dataset.at));
      if (element.textContent !== text) element.textContent = text;
    }
  }
}
