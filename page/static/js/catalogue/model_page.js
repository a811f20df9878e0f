// One model: facts, readiness, files, licence, its newest picture, its graph and a request as code.

import { thumbnailUrl } from "../gallery/actions.js";
import { h, icon } from "../dom.js";
import { pullWords } from "../machine/downloads_card.js";
import { bytes, messageOf, number, t } from "../text.js";
import { GraphPanel } from "./graph_panel.js";
import { readiness } from "./model_list.js";

const PULLING = new Set(["waiting", "running", "interrupted"]);
const TASKS = ["generate", "edit", "inpaint", "vary"];

/** The name of a task; as the server calls it if this page does not know it. */
export function taskName(task) {
  return TASKS.includes(task) ? t(`catalogue.task_${task}`) : task;
}

/** Tasks in the order that people ask for them. */
export function inOrder(tasks) {
  const place = (task) => (TASKS.includes(task) ? TASKS.indexOf(task) : TASKS.length);
  return [...tasks].sort((a, b) => place(a) - place(b));
}

export class ModelPage {
  /** `model`: an entry of GET /v1/models/{id}. */
  constructor(context, model) {
    this.context = context;
    this.model = model;
    this.files = h("div", {});
    this.pull = h("div", { class: "pull", "aria-live": "polite" });
    this.sample = h("div", { class: "sample", hidden: true });
    this.graph = new GraphPanel(context, model);
    this.element = h(
      "article",
      { class: "model-page", "aria-labelledby": "model-title" },
      this.head(),
      this.problems(),
      h("div", { class: "model-columns" }, this.facts(), this.licence()),
      h("section", { class: "panel", "aria-labelledby": "model-files" }, h("h2", { id: "model-files" }, t("catalogue.files")), this.files, this.pull),
      this.graph.element,
    );
    this.showFiles();
    this.showPull();
    this.loadSample();
  }

  head() {
    const { model } = this;
    const { kind, text } = readiness(model);
    const draw = () => this.context.navigate("draw", { mode: "settings", settings: { model: model.id }, images: [] });
    return h(
      "header",
      { class: "model-head" },
      this.sample,
      h(
        "div",
        { class: "model-titles" },
        h("p", { class: "muted", dir: "auto" }, model.family),
        h("h1", { id: "model-title", dir: "auto", tabindex: "-1" }, model.name ?? model.id),
        h("p", { class: "model-badges" }, h("span", { class: "badge", dataset: { kind } }, text), this.licenceBadge(), ...inOrder(model.tasks).map((task) => h("span", { class: "badge" }, taskName(task)))),
        h("button", { type: "button", class: "button primary", disabled: !model.tasks.length, onclick: draw }, icon("draw", { size: 18 }), h("span", {}, t("catalogue.draw"))),
      ),
    );
  }

  /** Why it cannot be drawn, or not everything of it. */
  problems() {
    const { model } = this;
    const refused = Object.entries(model.not_drawable ?? {}).flatMap(([task, texts]) => texts.map((text) => `${taskName(task)}: ${text}`));
    const texts = [...refused, ...(model.engine?.lacks ?? [])];
    if (model.engine?.fits_gpu === false) texts.push(t("catalogue.too_large_text", { amount: number(model.min_vram_gb) }));
    if (!texts.length && !model.unverified?.length) return null;
    return h(
      "div",
      { class: texts.length ? "problem" : "problem is-mild" },
      ...texts.map((text) => h("p", { dir: "auto" }, text)),
      model.unverified?.length ? h("p", { dir: "auto" }, t("catalogue.unverified", { what: model.unverified.join(", ") })) : null,
    );
  }

  facts() {
    const { model } = this;
    const { size, limits } = model;
    const rows = [
      [t("catalogue.id"), h("code", {}, model.id)],
      [t("catalogue.aliases"), model.aliases?.length ? model.aliases.join(", ") : null],
      [t("catalogue.size"), size && t("catalogue.size_text", { default: size.default.replace("x", " × "), min: size.min.replace("x", " × "), max: size.max.replace("x", " × ") })],
      [t("catalogue.per_request"), limits && t("catalogue.per_request_text", { n: limits.n, batch: limits.batch })],
      [t("catalogue.disk"), model.disk_gb && bytes(model.disk_gb * 1e9)],
      [t("catalogue.vram"), model.min_vram_gb && t("catalogue.vram_text", { amount: bytes(model.min_vram_gb * 1e9) })],
      [t("catalogue.qualities"), model.qualities?.length ? model.qualities.join(", ") : null],
      [t("catalogue.loras"), model.loras?.length ? model.loras.join(", ") : null],
      [t("catalogue.image_inputs"), model.image_inputs?.length ? model.image_inputs.join(", ") : null],
      [t("catalogue.from_comfyui"), model.needs_comfyui],
    ];
    return h(
      "section",
      { class: "panel", "aria-labelledby": "model-facts" },
      h("h2", { id: "model-facts" }, t("catalogue.facts")),
      h("dl", { class: "facts" }, ...rows.filter(([, value]) => value).map(([term, value]) => h("div", { class: "fact" }, h("dt", {}, term), h("dd", { dir: "auto" }, value)))),
    );
  }

  licenceBadge() {
    const { commercial, state } = this.model.licence;
    const kind = state === "denied" ? "bad" : commercial === true ? "good" : commercial === "unknown" ? "neutral" : "warn";
    return h("span", { class: "badge", dataset: { kind } }, t(`catalogue.commercial_${commercialName(commercial)}`));
  }

  licence() {
    const { licence } = this.model;
    const isLink = /^https?:\/\//.test(licence.url ?? "");
    const name = isLink
      ? h("a", { href: licence.url, target: "_blank", rel: "noopener noreferrer" }, licence.name)
      : licence.name;
    return h(
      "section",
      { class: "panel", "aria-labelledby": "model-licence" },
      h("h2", { id: "model-licence" }, t("catalogue.licence")),
      h("p", { class: "licence-name", dir: "auto" }, name),
      h("p", { class: "model-badges" }, this.licenceBadge(), h("span", { class: "badge" }, t(`catalogue.licence_${licence.state}`))),
      licence.note ? h("p", { class: "hint", dir: "auto" }, licence.note) : null,
      licence.state === "not_accepted" ? h("p", { class: "hint" }, t("catalogue.accept"), " ", h("code", {}, `easel accept-licence ${this.model.id}`)) : null,
      licence.state === "denied" ? h("p", { class: "hint" }, t("catalogue.denied_text")) : null,
    );
  }

  // --- files -------------------------------------------------------------------------------------

  showFiles() {
    const { model } = this;
    const files = model.files ?? [];
    if (!files.length) {
      this.files.replaceChildren(h("p", { class: "hint" }, t("catalogue.no_files")));
      return;
    }
    const total = files.reduce((sum, file) => sum + (file.size_bytes ?? 0), 0);
    const row = (file) =>
      h(
        "li",
        { class: "file" },
        h("span", { class: "badge", dataset: { kind: { present: "good", missing: "warn" }[file.state] ?? "neutral" } }, t(`catalogue.file_${file.state}`)),
        h("span", { class: "file-name", dir: "auto" }, h("span", { class: "muted" }, `${file.folder ?? ""}/`), file.name),
        h("span", { class: "file-size" }, file.size_bytes ? bytes(file.size_bytes) : ""),
        /^https?:\/\//.test(file.url ?? "") ? h("a", { href: file.url, target: "_blank", rel: "noopener noreferrer", "aria-label": t("catalogue.source_of", { name: file.name }) }, icon("external", { size: 18 })) : null,
        file.sha256 ? h("code", { class: "file-hash", title: file.sha256 }, `sha256 ${file.sha256.slice(0, 12)}…`) : null,
      );
    this.files.replaceChildren(
      h("ul", { class: "files" }, ...files.map(row)),
      total ? h("p", { class: "hint" }, t("catalogue.files_total", { count: files.length, size: bytes(total) })) : "",
    );
  }

  /** The button that downloads, or the download under way. */
  showPull() {
    const { live } = this.context;
    const { model } = this;
    const pulls = live.latest("pulls") ?? [];
    const running = pulls.find((pull) => pull.models.includes(model.id) && PULLING.has(pull.state));
    const last = pulls.find((pull) => pull.models.includes(model.id));
    const isMissing = (model.files ?? []).some((file) => file.state === "missing");
    const key = JSON.stringify([running, last?.state, isMissing]);
    if (key === this.pullShown) return;
    this.pullShown = key;
    const children = [];
    if (running) children.push(this.progress(running));
    else if (isMissing) children.push(this.pullActions(last));
    this.pull.replaceChildren(...children);
  }

  pullActions(last) {
    const { live } = this.context;
    const { model } = this;
    const reason = live.may("operate") ? null : t("machine.needs_operate");
    const button = h(
      "button",
      { type: "button", class: "button primary", "aria-disabled": reason ? "true" : null, onclick: () => !reason && this.startPull() },
      icon("download", { size: 18 }),
      h("span", {}, t("catalogue.pull")),
    );
    return h(
      "div",
      { class: "pull-actions" },
      button,
      reason ? h("span", { class: "hint" }, reason) : null,
      model.pull ? copyLine(model.pull, this.context) : null,
      last?.error && problemLines(last.error),
    );
  }

  progress(pull) {
    const share = pull.size ? Math.round((100 * pull.received) / pull.size) : 0;
    const bar = h("span", { class: "progress-bar", style: { "inline-size": `${share}%` } });
    const cancel = () => this.send(`/api/models/pulls/${encodeURIComponent(pull.id)}`, { method: "DELETE" });
    return h(
      "div",
      { class: "pull-progress" },
      h("div", { class: "progress-track", role: "progressbar", "aria-label": t("machine.progress"), "aria-valuenow": String(share), "aria-valuemin": "0", "aria-valuemax": "100" }, bar),
      h("p", { class: "hint" }, `${t(`machine.pull_${pull.state}`)} · ${pullWords(t, pull)}`),
      this.context.live.may("operate") ? h("button", { type: "button", class: "button small", onclick: cancel }, t("machine.cancel")) : null,
    );
  }

  startPull() {
    return this.send("/api/models/pull", { body: { models: [this.model.id] } });
  }

  async send(path, options) {
    try {
      await this.context.api.request(path, options);
    } catch (error) {
      this.context.toast(error.message, { kind: "error" });
    }
  }

  // --- its newest picture ------------------------------------------------------------------------

  async loadSample() {
    const { api } = this.context;
    try {
      const { images } = await api.request(`/api/images?model=${encodeURIComponent(this.model.id)}&limit=1`);
      if (!images.length) return;
      const [image] = images;
      const picture = h("img", { src: thumbnailUrl(api, image), alt: image.prompt?.slice(0, 200) ?? t("catalogue.sample"), decoding: "async", width: image.width, height: image.height });
      this.sample.replaceChildren(picture);
      this.sample.title = t("catalogue.sample");
      this.sample.hidden = false;
    } catch {
      // A model is complete without a picture of it.
    }
  }
}

function commercialName(commercial) {
  if (commercial === true) return "yes";
  if (commercial === false) return "no";
  return commercial === "conditional" ? "conditional" : "unknown";
}

/** An error of the server, below it in the server's words if those are others. */
function problemLines(error) {
  const message = messageOf(error);
  const original = message !== error.message && h("p", { class: "hint", dir: "auto", lang: "en" }, error.message);
  return [h("p", { class: "problem-line", dir: "auto" }, message), original];
}

/** A command with a button that copies it. */
export function copyLine(text, { toast }) {
  return h(
    "div",
    { class: "copy-line" },
    h("code", { tabindex: "0" }, text),
    h("button", { type: "button", class: "icon-button small", "aria-label": t("catalogue.copy"), title: t("catalogue.copy"), onclick: () => copy(text, toast) }, icon("copy", { size: 18 })),
  );
}

/** Offers `value` as the file `name`. */
export function downloadJson(value, name) {
  const link = document.createElement("a");
  const blob = new Blob([JSON.stringify(value, null, 2)], { type: "application/json" });
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Copies a text; without a secure context browsers only let the reader do that. */
export async function copy(text, toast) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("common.copied"));
  } catch {
    const field = h("textarea", { class: "visually-hidden", value: text });
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    toast(t(isCopied ? "common.copied" : "catalogue.not_copied"), { kind: isCopied ? "info" : "error" });
  }
}
