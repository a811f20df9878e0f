// What is drawn and what waits, in order, each with a button that cancels it.

import { h, icon } from "../dom.js";
import { percent, seconds, waitsFor } from "../text.js";
import { keyedList, setText } from "./keyed.js";

export class QueueCard {
  constructor(context) {
    this.context = context;
    const { t } = context;
    this.list = h("ol", { class: "queue" });
    this.show = keyedList(this.list, (request) => request.id, (request) => this.request(request.id));
    this.rows = new Map();
    this.none = h("p", { class: "hint" }, t("machine.queue_empty"));
    this.problem = h("p", { class: "action-problem", role: "alert", hidden: true });
    this.count = h("span", { class: "count" });
    this.all = h("button", { type: "button", class: "button small", hidden: true, onclick: () => this.cancelAll() }, t("machine.cancel_all"));
    this.element = h(
      "section",
      { class: "card queue-card", "aria-labelledby": "machine-queue" },
      h("div", { class: "card-head" }, h("h2", { id: "machine-queue", tabindex: "-1" }, t("machine.queue")), this.count, this.all),
      this.none,
      this.list,
      this.problem,
    );
  }

  request(id) {
    const { t } = this.context;
    const state = h("span", { class: "badge" });
    const model = h("strong", { dir: "auto" });
    const prompt = h("p", { class: "queue-prompt", dir: "auto" });
    const detail = h("p", { class: "queue-detail" });
    const bar = h("span", { class: "progress-bar" });
    const track = h("div", { class: "progress-track", role: "progressbar", "aria-label": t("machine.progress"), "aria-valuemin": "0", "aria-valuemax": "100" }, bar);
    const step = h("span", { class: "queue-step" });
    const cancel = h("button", { type: "button", class: "button small", onclick: () => this.cancel(id) }, icon("close", { size: 16 }), h("span", {}, t("machine.cancel")));
    const element = h(
      "li",
      { class: "queue-row" },
      h("div", { class: "queue-main" }, h("div", { class: "queue-head" }, state, model, step), prompt, track, detail),
      cancel,
    );
    const row = { element, at: 0, request: null };
    row.tick = () => {
      const { request } = row;
      const age = request.age_s === null ? null : request.age_s + Math.max(0, Date.now() / 1000 - row.at);
      setText(detail, this.detail(request, age));
    };
    row.update = (request) => {
      row.request = request;
      row.at = this.at;
      setText(state, this.stateOf(request));
      state.dataset.kind = request.state === "drawing" ? "busy" : "neutral";
      setText(model, request.model ?? t("machine.unknown_model"));
      setText(prompt, request.prompt);
      this.progress(request, track, bar, step);
      cancel.hidden = !request.can_cancel;
      cancel.setAttribute("aria-label", t("machine.cancel_request", { model: request.model ?? "" }));
      row.tick();
    };
    this.rows.set(id, row);
    return row;
  }

  stateOf({ state, kind, place }) {
    const { t } = this.context;
    if (state === "drawing") return t(kind === "llm" ? "machine.answering" : "machine.drawing");
    if (place === null || place === undefined) return t("machine.waiting");
    return place === 0 ? t("machine.next") : t("machine.ahead", { count: place });
  }

  progress(request, track, bar, step) {
    const share = request.progress;
    const isKnown = typeof share === "number";
    track.hidden = request.state !== "drawing" || request.kind === "llm";
    track.classList.toggle("is-unknown", !isKnown);
    bar.style.setProperty("inline-size", isKnown ? `${100 * share}%` : "30%");
    if (isKnown) {
      track.setAttribute("aria-valuenow", String(Math.round(100 * share)));
      track.setAttribute("aria-valuetext", percent(share));
    } else {
      track.removeAttribute("aria-valuenow");
      track.removeAttribute("aria-valuetext");
    }
    const { t } = this.context;
    setText(step, request.steps ? t("machine.step", { step: request.step ?? 0, steps: request.steps }) : "");
  }

  detail(request, age) {
    const { t } = this.context;
    const waits = request.state === "waiting" && waitsFor(request) ? t("machine.waits_for", { what: waitsFor(request) }) : null;
    const left = typeof request.expected_s === "number" ? t("machine.about_left", { time: seconds(request.expected_s) }) : null;
    const since = age === null ? null : t("machine.age", { time: seconds(Math.floor(age)) });
    const engine = request.engine ? t("machine.on_engine", { name: request.engine }) : null;
    return [request.client, engine, since, waits, left].filter(Boolean).join(" · ");
  }

  update(status, { at, reason }) {
    this.at = at;
    const requests = status.requests ?? [];
    this.show(requests);
    const ids = new Set(requests.map((request) => request.id));
    for (const id of this.rows.keys()) if (!ids.has(id)) this.rows.delete(id);
    this.none.hidden = requests.length > 0;
    this.list.hidden = !requests.length;
    setText(this.count, requests.length ? String(requests.length) : "");
    this.all.hidden = requests.length < 2 || Boolean(reason);
  }

  tick() {
    for (const row of this.rows.values()) row.tick();
  }

  async cancel(id) {
    await this.send({ id });
    // Its button is gone with it: the keyboard goes on at the heading.
    this.element.querySelector("h2").focus({ preventScroll: true });
  }

  async cancelAll() {
    const { t, confirm } = this.context;
    const title = t("machine.cancel_all_question", { count: this.rows.size });
    if (await confirm(title, t("machine.cancel_all_text"), { action: t("machine.cancel_all"), danger: true })) {
      await this.send({ all: true });
    }
  }

  async send(body) {
    const { api, announce, t } = this.context;
    this.problem.hidden = true;
    try {
      await api.request("/api/comfyui/render/cancel", { body });
      announce(t("machine.cancelled"));
    } catch (error) {
      if (error.status === 404) return; // it has just ended
      setText(this.problem, error.message);
    }
  }
}
