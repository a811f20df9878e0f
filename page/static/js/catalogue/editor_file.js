// The graph as a workflow of ComfyUI's editor: downloaded as a file, or saved where the editor lists its workflows.

import { h, icon } from "../dom.js";
import { t } from "../text.js";
import { downloadJson } from "./model_page.js";

export class EditorFile {
  /** `body()`: the request whose graph is meant, with its task. */
  constructor(context, body) {
    this.context = context;
    this.body = body;
    const button = (name, run) =>
      h("button", { type: "button", class: "button small", disabled: true, onclick: (event) => this.run(event.currentTarget, run) }, icon(name === "save" ? "catalogue" : "download", { size: 18 }), h("span", {}, t(`catalogue.editor_${name}`)));
    this.downloading = button("download", () => this.download());
    this.saving = button("save", () => this.save());
    this.notes = h("ul", { class: "graph-notes", "aria-label": "ComfyUI", hidden: true });
    this.statusChanged(context.live.latest("status"));
  }

  /** Whether there is a graph. What is said of another one is removed. */
  setEnabled(isThere) {
    this.downloading.disabled = this.saving.disabled = !isThere;
    this.showNotes([]);
  }

  /** Only a ComfyUI that answers has an editor; the server refuses to save for a key without `operate`. */
  statusChanged(status) {
    this.saving.hidden = !status?.reachable || status.sketch || !this.context.live.may("operate");
  }

  /** One at a time; the button keeps the focus meanwhile. */
  async run(button, action) {
    if (button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    try {
      await action();
    } catch (error) {
      this.context.toast(error.message || t("catalogue.no_graph"), { kind: "error" });
    } finally {
      button.ariaBusy = null;
    }
  }

  async download() {
    const answer = await this.context.api.request("/api/graph", { body: { ...this.body(), as: "editor" } });
    downloadJson(answer.editor_file, answer.file_name);
    this.context.toast(t("catalogue.editor_drop"), { kind: "success" });
    this.showNotes(answer.notes);
  }

  async save() {
    const answer = await this.context.api.request("/api/graph/save", { body: this.body() });
    this.context.toast(t("catalogue.editor_saved", { name: answer.file_name }), { kind: "success" });
    this.showNotes(answer.notes);
  }

  showNotes(notes) {
    this.notes.hidden = !notes.length;
    this.notes.replaceChildren(...notes.map((note) => h("li", { dir: "auto" }, `ComfyUI: ${note}`)));
  }
}
