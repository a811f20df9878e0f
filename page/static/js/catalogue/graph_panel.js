// What a request to a model becomes: its graph, where each value comes from, and the request as code.

import { h, icon } from "../dom.js";
import { noteText } from "../gallery/notes.js";
import { t } from "../text.js";
import { codeSamples } from "./code_samples.js";
import { EditorFile } from "./editor_file.js";
import { copy, downloadJson, inOrder, taskName } from "./model_page.js";
import "./graph_view.js";

const LANGUAGES = ["curl", "python", "javascript"];
const NAMES = { curl: "curl", python: "Python", javascript: "JavaScript" };
const PAUSE_MS = 400;

export class GraphPanel {
  constructor(context, model) {
    this.context = context;
    this.model = model;
    this.task = inOrder(model.tasks)[0];
    this.build();
    if (this.task) this.compile();
  }

  build() {
    this.graph = document.createElement("easel-graph");
    this.problem = h("p", { class: "problem", role: "alert", hidden: true, dir: "auto" });
    this.notes = h("ul", { class: "graph-notes" });
    this.workflow = h("span", { class: "hint" });
    this.prompt = h("input", {
      type: "text",
      id: "graph-prompt",
      value: t("catalogue.sample_prompt"),
      dir: "auto",
      autocomplete: "off",
      oninput: () => this.typed(),
    });
    const option = (task) => h("option", { value: task, selected: task === this.task }, taskName(task));
    this.tasks = h("select", { id: "graph-task", onchange: () => this.taskChanged() }, ...inOrder(this.model.tasks).map(option));
    this.save = h("button", { type: "button", class: "button small", disabled: true, onclick: () => this.download() }, icon("download", { size: 18 }), h("span", {}, t("catalogue.save_graph")));
    this.editor = new EditorFile(this.context, () => this.request());
    this.code = h("pre", { class: "code", tabindex: "0", id: "code-panel", role: "tabpanel" });
    this.language = "curl";
    const tab = (language) =>
      h("button", { type: "button", role: "tab", id: `code-${language}`, "aria-controls": "code-panel", onclick: () => this.showCode(language), onkeydown: (event) => this.tabPressed(event) }, NAMES[language]);
    this.tabs = LANGUAGES.map(tab);
    const copyCode = () => copy(this.code.textContent, this.context.toast);
    this.element = h(
      "div",
      { class: "model-graph" },
      h(
        "section",
        { class: "panel", "aria-labelledby": "model-graph" },
        h("div", { class: "panel-head" }, h("h2", { id: "model-graph" }, t("catalogue.graph")), this.workflow),
        h("div", { class: "graph-actions" }, this.save, this.editor.downloading, this.editor.saving),
        h(
          "div",
          { class: "graph-request" },
          h("div", { class: "field is-wide" }, h("label", { for: "graph-prompt" }, t("catalogue.prompt")), this.prompt),
          h("div", { class: "field" }, h("label", { for: "graph-task" }, t("catalogue.task")), this.tasks),
        ),
        this.problem,
        this.graph,
        legend(),
        this.notes,
        this.editor.notes,
      ),
      h(
        "section",
        { class: "panel", "aria-labelledby": "model-code" },
        h("div", { class: "panel-head" }, h("h2", { id: "model-code" }, t("catalogue.code")), h("button", { type: "button", class: "button small", onclick: copyCode }, icon("copy", { size: 18 }), h("span", {}, t("catalogue.copy")))),
        h("div", { class: "tabs", role: "tablist", "aria-labelledby": "model-code" }, ...this.tabs),
        this.code,
        h("p", { class: "hint" }, t("catalogue.code_hint")),
      ),
    );
    this.element.hidden = !this.task;
    this.showCode("curl");
  }

  get isEdit() {
    return this.task !== "generate";
  }

  /** What is drawn. */
  fields() {
    const prompt = this.prompt.value;
    return this.task === "vary" ? { model: this.model.id } : { model: this.model.id, prompt };
  }

  /** The request for its graph. */
  request() {
    return { ...this.fields(), task: this.task };
  }

  typed() {
    clearTimeout(this.pause);
    this.pause = setTimeout(() => this.changed(), PAUSE_MS);
  }

  taskChanged() {
    this.task = this.tasks.value;
    this.prompt.closest(".field").hidden = this.task === "vary";
    this.changed();
  }

  changed() {
    this.showCode(this.language);
    this.compile();
  }

  async compile() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const answer = await this.context.api.request("/api/graph", { body: this.request() });
      if (turn !== this.turn) return;
      this.answer = answer;
      this.problem.hidden = true;
      this.graph.hidden = false;
      this.graph.show(answer);
      this.workflow.textContent = t("catalogue.workflow", { name: answer.workflow, count: answer.nodes.length });
    } catch (error) {
      if (turn !== this.turn) return;
      this.answer = null;
      this.problem.textContent = error.message || t("catalogue.no_graph");
      this.problem.hidden = false;
      this.graph.hidden = true;
      this.workflow.textContent = "";
    }
    this.save.disabled = !this.answer;
    this.editor.setEnabled(Boolean(this.answer));
    this.showNotes();
  }

  showNotes() {
    const { adjusted = [], ignored = [] } = this.answer ?? {};
    const items = [
      ...adjusted.map((entry) => h("li", { dir: "auto" }, t("catalogue.adjusted", { what: noteText(entry) }))),
      ...ignored.map((entry) => h("li", { dir: "auto" }, t("catalogue.ignored", { what: noteText(entry) }))),
    ];
    this.notes.replaceChildren(...items);
    this.notes.hidden = !items.length;
  }

  download() {
    downloadJson(this.answer.graph, `${this.model.id.replaceAll("/", "-")}-${this.task}.json`);
  }

  showCode(language) {
    this.language = language;
    for (const tab of this.tabs) {
      const isChosen = tab.id === `code-${language}`;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
    }
    this.code.setAttribute("aria-labelledby", `code-${language}`);
    const body = { ...this.fields(), ...(this.isEdit ? { response_format: "url" } : {}) };
    this.code.textContent = codeSamples(this.context.api.root, body, this.isEdit)[language];
  }

  tabPressed(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const at = (LANGUAGES.indexOf(this.language) + by + LANGUAGES.length) % LANGUAGES.length;
    this.showCode(LANGUAGES[at]);
    this.tabs[at].focus();
  }
}

function legend() {
  const kinds = ["request", "model", "workflow", "random"];
  return h("p", { class: "legend" }, ...kinds.map((kind) => h("span", { dataset: { origin: kind } }, t(`catalogue.origin_${kind}`))));
}
