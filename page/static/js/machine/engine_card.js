// The engine: version, address, how pictures come, what is wrong with it and what helps.

import { h } from "../dom.js";
import { messageOf } from "../text.js";
import { ago } from "../times.js";
import { keyedList, setText } from "./keyed.js";

export class EngineCard {
  constructor({ t }) {
    this.t = t;
    this.facts = h("dl", { class: "facts" });
    this.showFacts = keyedList(this.facts, (fact) => fact.term, (fact) => this.fact(fact.term));
    this.problem = h("div", { class: "problem", hidden: true });
    this.lastError = h("div", { class: "problem is-past", hidden: true });
    this.sketch = h("p", { class: "hint", hidden: true }, t("machine.sketch_hint"));
    this.element = h(
      "section",
      { class: "card engine-card", "aria-labelledby": "machine-engine" },
      h("h2", { id: "machine-engine" }, t("machine.engine")),
      this.facts,
      this.sketch,
      this.problem,
      this.lastError,
    );
  }

  fact(term) {
    const value = h("dd", { dir: "auto" });
    return { element: h("div", { class: "fact" }, h("dt", {}, term), value), update: (fact) => setText(value, fact.value) };
  }

  update(status) {
    const { t } = this;
    this.status = status;
    const { queue, container } = status;
    const engines = status.engines ?? [];
    const rows = [
      [t("machine.engine_name"), engines.length > 1 ? engines[0].name : null],
      [t("machine.state"), t(`machine.engine_${status.engine}`)],
      [t("machine.version"), status.sketch ? t("machine.sketch_engine") : status.version],
      [t("machine.address"), status.endpoint],
      [t("machine.delivery"), status.picture_delivery && t(`machine.delivery_${status.picture_delivery}`)],
      [t("machine.process"), container?.name && `${container.name}: ${t(`machine.container_${container.state}`)}`],
      [t("machine.comfyui_queue"), queue && t("machine.comfyui_queue_text", { running: queue.running, pending: queue.pending })],
    ];
    this.showFacts(rows.filter(([, value]) => value).map(([term, value]) => ({ term, value: String(value) })));
    this.sketch.hidden = !status.sketch;
    this.show(this.problem, status.problem, t("machine.problem"));
    this.tick();
  }

  tick() {
    const error = this.status?.last_error;
    const title = error ? this.t("machine.last_error", { time: ago(error.at) }) : "";
    this.show(this.lastError, error, title);
  }

  show(element, error, title) {
    const key = error ? JSON.stringify([title, error]) : "";
    if (element.shown === key) return;
    element.shown = key;
    element.hidden = !error;
    if (!error) return;
    const message = messageOf(error);
    const isOwn = message === error.message; // else it says what helps
    const original = isOwn || !error.message ? null : h("p", { class: "hint", dir: "auto", lang: "en" }, error.message);
    const remedy = isOwn && error.remedy ? h("p", { class: "remedy", dir: "auto" }, this.t("machine.remedy", { text: error.remedy })) : null;
    element.replaceChildren(
      ...[h("h3", {}, title), h("p", { dir: "auto" }, message), original, remedy, h("code", {}, error.code)].filter(Boolean),
    );
  }
}
