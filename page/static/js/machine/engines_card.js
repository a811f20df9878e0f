// Several engines: what each of them does, what it has loaded, what waits for it and how much it draws.

import { h } from "../dom.js";
import { messageOf } from "../text.js";
import { keyedList, setText } from "./keyed.js";

export class EnginesCard {
  constructor({ t }) {
    this.t = t;
    this.list = h("ul", { class: "engines" });
    this.show = keyedList(this.list, (engine) => engine.name, () => this.engine());
    this.element = h(
      "section",
      { class: "card engines-card", "aria-labelledby": "machine-engines", hidden: true },
      h("h2", { id: "machine-engines" }, t("machine.engines")),
      this.list,
    );
  }

  engine() {
    const { t } = this;
    const name = h("strong", { dir: "auto" });
    const state = h("span", { class: "badge" });
    const drained = h("span", { class: "badge", dataset: { kind: "neutral" } }, t("machine.drained"));
    const models = h("p", { class: "engine-models", dir: "auto" });
    const detail = h("p", { class: "queue-detail" });
    const problem = h("p", { class: "problem-line", dir: "auto" });
    const element = h("li", { class: "engine-row" }, h("div", { class: "stack-head" }, name, state, drained), models, detail, problem);
    return {
      element,
      update: (engine) => {
        setText(name, engine.name);
        setText(state, t(`machine.engine_${engine.engine}`));
        state.dataset.kind = { generating: "busy", running: "good", starting: "neutral" }[engine.engine] ?? "bad";
        drained.hidden = !engine.drained;
        setText(models, this.models(engine));
        setText(detail, this.detail(engine));
        setText(problem, engine.problem ? messageOf(engine.problem) || engine.problem.code : "");
      },
    };
  }

  models({ loaded_models: models, reachable }) {
    const { t } = this;
    if (!reachable || !models) return "";
    return models.length ? t("machine.has_loaded", { models: models.join(", ") }) : t("machine.nothing_loaded");
  }

  detail(engine) {
    const { t } = this;
    const perHour = engine.pictures_per_hour;
    return [
      engine.switching ? t("machine.is_switching") : null,
      engine.shared && engine.mode === "inference" && !engine.switching ? t("machine.mode_inference") : null,
      t("machine.engine_waiting", { count: engine.waiting }),
      typeof perHour === "number" ? t("machine.per_hour", { count: perHour }) : null,
    ]
      .filter(Boolean)
      .join(" · ");
  }

  update(status) {
    const engines = status.engines ?? [];
    this.element.hidden = engines.length < 2;
    this.show(this.element.hidden ? [] : engines);
  }
}
