// The LLM servers that share the GPU, what each of them holds, and the servers that LLM requests are forwarded to.

import { h } from "../dom.js";
import { keyedList, setText } from "./keyed.js";

export class StacksCard {
  constructor({ t }) {
    this.t = t;
    this.list = h("ul", { class: "stacks" });
    this.showStacks = keyedList(this.list, (stack) => stack.name, () => this.stack());
    this.upstreams = h("ul", { class: "stacks" });
    this.showUpstreams = keyedList(this.upstreams, (upstream) => upstream.name, () => this.upstream());
    this.upstreamTitle = h("h3", {}, t("machine.upstreams"));
    this.saved = h("p", { class: "hint" });
    this.none = h("p", { class: "hint" }, t("machine.no_stacks"));
    this.element = h(
      "section",
      { class: "card stacks-card", "aria-labelledby": "machine-stacks" },
      h("h2", { id: "machine-stacks" }, t("machine.stacks")),
      this.list,
      this.none,
      this.saved,
      this.upstreamTitle,
      this.upstreams,
    );
  }

  stack() {
    const { t } = this;
    const name = h("strong", {});
    const state = h("span", { class: "badge" });
    const address = h("span", { class: "stack-address" });
    const models = h("ul", { class: "chips", "aria-label": t("machine.loaded") });
    const showModels = keyedList(models, (model) => model, (model) => ({ element: h("li", { class: "chip", dir: "auto" }, model), update() {} }));
    const none = h("p", { class: "hint" });
    const problem = h("p", { class: "problem-line", dir: "auto" });
    const element = h("li", { class: "stack" }, h("div", { class: "stack-head" }, name, state, address), models, none, problem);
    return {
      element,
      update: (stack) => {
        setText(name, stack.name);
        setText(address, [stack.driver, stack.url, stack.gpu && t("machine.of_gpu", { name: stack.gpu })].filter(Boolean).join(" · "));
        setText(state, this.stateOf(stack));
        state.dataset.kind = !stack.reachable ? "bad" : stack.busy ? "busy" : "good";
        showModels(stack.loaded ?? []);
        models.hidden = !stack.loaded?.length;
        setText(none, stack.reachable && stack.loaded && !stack.loaded.length ? t("machine.nothing_loaded") : "");
        setText(problem, stack.problem);
      },
    };
  }

  stateOf(stack) {
    const { t } = this;
    if (!stack.reachable) return t("machine.unreachable");
    return stack.busy ? t("machine.busy", { count: stack.busy }) : t("machine.idle");
  }

  upstream() {
    const { t } = this;
    const name = h("strong", {});
    const detail = h("span", { class: "stack-address" });
    const problem = h("p", { class: "problem-line", dir: "auto" });
    const element = h("li", { class: "stack" }, h("div", { class: "stack-head" }, name, detail), problem);
    return {
      element,
      update: (upstream) => {
        setText(name, upstream.name);
        setText(detail, [upstream.preset, upstream.url, t("machine.model_count", { count: upstream.models })].filter(Boolean).join(" · "));
        setText(problem, upstream.problem);
      },
    };
  }

  update(status) {
    const { t } = this;
    const stacks = status.stacks ?? [];
    const upstreams = status.upstreams ?? [];
    this.showStacks(stacks);
    this.showUpstreams(upstreams);
    this.list.hidden = !stacks.length;
    this.none.hidden = stacks.length > 0;
    this.upstreams.hidden = this.upstreamTitle.hidden = !upstreams.length;
    const gpus = status.gpus?.length > 1 ? status.gpus : [status];
    const saved = gpus.flatMap((gpu) => gpu.arbiter?.saved_llm_slots ?? []);
    setText(this.saved, saved.length ? t("machine.saved", { models: saved.join(", ") }) : "");
  }
}
