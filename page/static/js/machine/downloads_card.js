// The downloads of model files.

import { h, icon } from "../dom.js";
import { bytes, messageOf, percent, seconds } from "../text.js";
import { keyedList, setText } from "./keyed.js";

const RUNNING = new Set(["waiting", "running", "interrupted"]);

/** What a download has done and how long it still takes, as one line. */
export function pullWords(t, pull) {
  const parts = [];
  if (pull.size && (pull.received || pull.state === "running")) parts.push(t("machine.received_of", { received: bytes(pull.received), size: bytes(pull.size) }));
  else if (pull.size || pull.received) parts.push(bytes(pull.size ?? pull.received));
  if (pull.state === "running" && pull.bytes_per_s > 0) {
    parts.push(t("machine.per_second", { amount: bytes(pull.bytes_per_s) }));
    if (pull.size) parts.push(t("machine.about_left", { time: seconds((pull.size - pull.received) / pull.bytes_per_s) }));
  }
  return parts.join(" · ");
}

export class DownloadsCard {
  constructor(context) {
    this.context = context;
    const { t } = context;
    this.list = h("ul", { class: "pulls" });
    this.show = keyedList(this.list, (pull) => pull.id, (pull) => this.pull(pull.id));
    this.problem = h("p", { class: "action-problem", role: "alert", hidden: true });
    this.none = h("p", { class: "hint" }, t("machine.no_downloads"), " ", h("a", { href: "#catalogue" }, t("machine.to_catalogue")));
    this.element = h(
      "section",
      { class: "card downloads-card", "aria-labelledby": "machine-downloads" },
      h("h2", { id: "machine-downloads", tabindex: "-1" }, t("machine.downloads")),
      this.none,
      this.list,
      this.problem,
    );
  }

  pull(id) {
    const { t } = this.context;
    const name = h("strong", { dir: "auto" });
    const state = h("span", { class: "badge" });
    const bar = h("span", { class: "progress-bar" });
    const track = h("div", { class: "progress-track", role: "progressbar", "aria-label": t("machine.progress"), "aria-valuemin": "0", "aria-valuemax": "100" }, bar);
    const words = h("p", { class: "queue-detail" });
    const problem = h("p", { class: "problem-line", dir: "auto" });
    const original = h("p", { class: "hint", dir: "auto", lang: "en" });
    const files = h("ul", { class: "pull-files" });
    const showFiles = keyedList(files, (file) => `${file.folder}/${file.name}`, () => this.file());
    const cancel = h("button", { type: "button", class: "button small", onclick: () => this.cancel(id) }, icon("close", { size: 16 }), h("span", {}, t("machine.cancel")));
    const element = h(
      "li",
      { class: "queue-row" },
      h(
        "div",
        { class: "queue-main" },
        h("div", { class: "queue-head" }, state, name),
        track,
        words,
        problem,
        original,
        h("details", {}, h("summary", {}, t("machine.files")), files),
      ),
      cancel,
    );
    return {
      element,
      update: (pull) => {
        setText(name, pull.models.join(", "));
        setText(state, t(`machine.pull_${pull.state}`));
        state.dataset.kind = { done: "good", failed: "bad", running: "busy" }[pull.state] ?? "neutral";
        const share = pull.size ? pull.received / pull.size : null;
        track.hidden = !RUNNING.has(pull.state);
        bar.style.setProperty("inline-size", `${100 * (share ?? 0)}%`);
        track.setAttribute("aria-valuenow", String(Math.round(100 * (share ?? 0))));
        if (share !== null) track.setAttribute("aria-valuetext", percent(share));
        setText(words, pullWords(t, pull));
        const message = pull.error && messageOf(pull.error);
        setText(problem, message);
        setText(original, pull.error && message !== pull.error.message ? pull.error.message : null);
        showFiles(pull.files ?? []);
        cancel.hidden = !RUNNING.has(pull.state) || Boolean(this.reason);
        cancel.setAttribute("aria-label", t("machine.cancel_download", { models: pull.models.join(", ") }));
      },
    };
  }

  file() {
    const { t } = this.context;
    const text = h("span", {});
    return {
      element: h("li", { dir: "auto" }, text),
      update: (file) => {
        const size = file.size ? `${bytes(file.received ?? 0)} / ${bytes(file.size)}` : "";
        setText(text, [`${file.folder}/${file.name}`, size, file.reason].filter(Boolean).join(" · "));
      },
    };
  }

  update(pulls, { reason }) {
    this.reason = reason;
    this.show(pulls ?? []);
    this.none.hidden = Boolean(pulls?.length);
    this.list.hidden = !pulls?.length;
  }

  async cancel(id) {
    const { api, announce, t } = this.context;
    this.problem.hidden = true;
    try {
      await api.request(`/api/models/pulls/${encodeURIComponent(id)}`, { method: "DELETE" });
      announce(t("machine.cancelled"));
      this.element.querySelector("h2").focus({ preventScroll: true });
    } catch (error) {
      setText(this.problem, error.message);
    }
  }
}
