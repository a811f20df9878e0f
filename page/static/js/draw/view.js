// The view Draw: the form, the pictures in the middle, the latest ones beside it.

import { h } from "../dom.js";
import { addStylesheet } from "../stylesheets.js";
import { addTexts, waitsFor } from "../text.js";
import { offerReload } from "../toasts.js";
import { Drawing, ofGallery, randomSeed } from "./drawing.js";
import { createEditSlot } from "./edit_slot.js";
import { setLastSeed } from "./fields.js";
import { createForm } from "./form.js";
import { createModelPicker } from "./model_picker.js";
import { createModels } from "./models.js";
import { createPulls } from "./pulls.js";
import { createRecent } from "./recent.js";
import { choicesOf, parseSize, ratioOf } from "./sizes.js";
import { createStage } from "./stage.js";

const SAVE_MS = 400;

// A drawing goes on while another view is open, and its pictures can be deleted there.
let drawing = null;
let watching = null;

export async function mount(container, context) {
  const view = new DrawView(container, context);
  await view.start();
  return { unmount: () => view.unmount() };
}

class DrawView {
  #context;
  #saveTimer = null;
  #ends = [];

  constructor(container, context) {
    this.container = container;
    this.#context = context;
    const { api, live, toast, t } = context;
    this.state = loadState(context.store);
    this.models = createModels(context);
    this.pulls = createPulls({ ...context, onChange: () => this.picker?.refresh() });
    this.picker = createModelPicker({
      models: this.models,
      pulls: this.pulls,
      onChoose: (model) => this.choose(model.id),
      onError: (error) => (error instanceof api.ApiError ? toast(error.message, { kind: "error" }) : offerReload()),
      waitsForSwitch: () => waitsForSwitch(live.latest("status")),
    });
    this.slot = createEditSlot({
      onChange: () => this.imagesChanged(),
      onError: offerReload,
    });
    this.form = createForm({
      state: this.state,
      picker: this.picker,
      slot: this.slot,
      mayDraw: () => live.may("draw"),
      onChange: () => this.saveSoon(),
      onDraw: () => this.draw(),
      onStop: () => drawing?.stop(),
    });
    this.stage = createStage({
      actions: (image, of) => this.results?.actions(image, of) ?? [],
      remedies: (error) => this.remedies(error),
      onOpen: (images, index) => this.withResults((results) => results.open(images, index)),
    });
    this.editStage = null; // made with the first image
    this.editPlace = h("div", { hidden: true });
    this.recent = createRecent({ api, live, onChoose: (image) => this.showStored(image) });
    this.notice = h("p", { class: "sketch-notice", hidden: true });
  }

  async start() {
    const { live } = this.#context;
    const view = h("div", { class: "draw-view" }, this.form.element, h("div", { class: "stage-column" }, this.notice, this.editPlace, this.stage.element), this.recent.element);
    this.container.append(h("h1", { class: "visually-hidden" }, this.#context.t("common.title_draw")), view);
    watching ??= live.subscribe("image", ({ change, image }) => change === "removed" && drawing?.lose([image.name]));
    this.#ends.push(live.subscribe("image", ({ change, image }) => change === "removed" && this.lose([image.name])));
    this.#ends.push(live.subscribe("status", (status) => this.showStatus(status)));
    addEventListener("pagehide", this.#save);
    if (drawing) this.follow();
    else this.showEmpty();
    // Typing can begin before the models are known.
    const { payload } = this.#context;
    this.loadModels()
      .then(() => {
        if (this.slot.panel()) this.imagesChanged();
        return this.takeOver(payload);
      })
      .catch((error) => console.error(error));
    if (matchMedia("(pointer: fine)").matches && !drawing) this.form.focusPrompt();
  }

  unmount() {
    this.#save();
    removeEventListener("pagehide", this.#save);
    for (const end of this.#ends) end();
    this.results?.close();
    for (const part of [this.models, this.pulls, this.recent, this.slot, this.stage, this.editStage]) part?.unmount();
    this.isGone = true;
    if (drawing) {
      drawing.onChange = () => {};
      drawing.onPreview = (of, index, bitmap) => bitmap.close();
    }
  }

  async loadModels() {
    const { t } = this.#context;
    let model;
    try {
      model = await this.models.first(this.state.model);
    } catch (error) {
      if (error.name === "AbortError") return;
      const retry = { label: t("common.retry"), primary: true, run: () => (this.showEmpty(), this.loadModels()) };
      this.form.showProblem(t("draw.problem.models"));
      this.stage.showEmpty(h("p", {}, error.message || t("common.unreachable")), h("button", { type: "button", class: "button", onclick: retry.run }, retry.label));
      return;
    }
    this.form.showProblem(null);
    if (model) await this.choose(model.id, { isFirst: true });
    this.#ends.push(this.models.changed.subscribe(() => this.refreshModel()));
  }

  async refreshModel() {
    try {
      const model = await this.models.first(this.state.model);
      if (model) await this.choose(model.id, { isFirst: true });
    } catch {
      // The present one stays until the catalogue changes again.
    }
  }

  async choose(id, { isFirst = false } = {}) {
    const model = this.models.find(id);
    if (!model) return;
    if (!isFirst && id !== this.state.model) {
      this.form.carryOver(this.state.model, id);
      this.keepRatio(id);
    }
    this.state.model = id;
    this.picker.show(model);
    this.slot.setModel(model);
    this.saveSoon();
    try {
      const detail = await this.models.detail(id);
      if (this.state.model !== id) return;
      this.detail = detail;
      this.slot.setModel(detail);
      this.form.setDetail(detail);
      this.applyRatio();
    } catch (error) {
      this.form.showProblem(error.message || this.#context.t("common.unreachable"));
    }
  }

  /** The ratio stays with another model, whose sizes may be others. */
  keepRatio(id) {
    const size = parseSize(this.form.valueOf("size"));
    const isChosen = this.state.values[this.detail?.id]?.size !== undefined;
    this.wantedRatio = isChosen && size && this.state.values[id]?.size === undefined ? ratioOf(size) : null;
  }

  applyRatio() {
    const input = this.form.input("size");
    const choice = this.wantedRatio && input ? choicesOf(input).find(({ ratio }) => ratio === this.wantedRatio) : null;
    this.wantedRatio = null;
    if (choice) this.form.setValue("size", `${choice.size.width}x${choice.size.height}`);
  }

  // --- drawing ---------------------------------------------------------------------------------------

  async draw() {
    const { t, announce } = this.#context;
    const isSent = await this.once(async () => {
      const fields = this.form.fields();
      if (this.form.input("seed") && fields.seed === undefined) fields.seed = randomSeed();
      const images = this.slot.hasImages ? await this.slot.read() : null;
      const count = fields.n ?? 1;
      const path = images ? "v1/images/edits" : "v1/images/generations";
      const parts = images ? await this.partsOf(images) : null;
      const source = images && { image: images.images[0].blob, sides: images.outpaint };
      this.begin({ path, fields, count, parts, source, ratio: this.ratioOf(images) });
    }, t("draw.error.other"));
    if (isSent) announce(t("draw.started"));
  }

  /** Whether `prepare` has begun a drawing. Reading images takes a while: a second press in that time is the same one. */
  async once(prepare, problem) {
    if (drawing?.isActive || this.isPreparing) return false;
    this.isPreparing = true;
    try {
      await prepare();
      return true;
    } catch (error) {
      console.warn(error);
      this.#context.toast(problem, { kind: "error" });
      return false;
    } finally {
      this.isPreparing = false;
    }
  }

  /** What the form of an edit has beside its fields. */
  async partsOf(images) {
    const { editForm } = await import("../edit/form_data.js");
    return [...editForm({}, images).entries()].map(([name, value]) => [name, value, value instanceof Blob ? value.name : null]);
  }

  ratioOf(images) {
    const size = parseSize(this.form.valueOf("size"));
    const first = images?.images[0];
    if (images?.outpaint && first) {
      const { left = 0, right = 0, top = 0, bottom = 0 } = images.outpaint;
      return (first.width + left + right) / (first.height + top + bottom);
    }
    if (first && !this.state.values[this.detail.id]?.size) return first.width / first.height;
    return size ? size.width / size.height : 1;
  }

  get isDrawing() {
    return drawing?.isActive ?? false;
  }

  begin(request) {
    drawing = new Drawing(request, this.#context, {});
    drawing.steps = Number(request.fields.steps ?? this.form.valueOf("steps") ?? 0);
    drawing.batch = this.detail?.limits?.batch ?? 1;
    this.follow();
    drawing.run();
    this.scrollToPictures();
  }

  /** On a phone they are above the form. */
  scrollToPictures() {
    if (matchMedia("(max-width: 760px)").matches) scrollTo({ top: 0 });
  }

  /** Show what runs, also after another view was open. */
  follow() {
    drawing.onChange = (changed) => changed === drawing && this.changed();
    drawing.onPreview = (changed, index, bitmap) => (changed === drawing ? this.stage.preview(index, bitmap) : bitmap.close());
    this.stage.show(drawing);
    this.editStage?.showPictures();
    this.form.setBusy(drawing.isActive);
    if (drawing.finished.length) this.showActions();
  }

  /** These stored images are deleted. */
  lose(names) {
    if (drawing?.lose(names)) this.stage.update();
    this.results?.lose(names);
  }

  imagesChanged() {
    this.form.showInputs();
    this.showEditStage().catch((error) => console.warn(error)); // the tools are in the form then
  }

  async showEditStage() {
    if (!this.slot.panel()) return;
    const { createEditStage } = await import("./edit_stage.js");
    if (this.isGone) return;
    if (!this.editStage) {
      const hasPictures = () => drawing !== null;
      this.editStage = createEditStage({ stage: this.stage.element, hasPictures, onkeydown: this.form.onkeydown });
      this.editPlace.replaceWith(this.editStage.element);
    }
    this.editStage.update(this.slot.panel());
  }

  changed() {
    const { t, announce } = this.#context;
    this.stage.update();
    this.form.setBusy(drawing.isActive);
    if (drawing.finished.length) this.showActions();
    if (drawing.isActive) return void this.announceProgress();
    if (drawing.phase === "done") {
      announce(t("draw.done", { count: drawing.finished.length }));
      const seed = drawing.finished.at(-1)?.seed ?? null;
      if (seed !== null) setLastSeed(seed);
    } else if (drawing.phase === "failed") {
      announce(drawing.error.message || t("draw.error.other"), { assertive: true });
    }
  }

  /** Screen readers hear the phases, not every step. */
  announceProgress() {
    const { t, announce } = this.#context;
    const key = `${drawing.phase}${drawing.finished.length}`;
    if (key === this.announced) return;
    this.announced = key;
    if (drawing.phase === "waiting") announce(t("draw.waiting_for", { what: waitsFor(drawing.waiting) ?? "" }));
    else if (drawing.phase === "reconnecting") announce(t("draw.reconnecting"));
    else if (drawing.finished.length) announce(t("draw.picture_number", { index: drawing.finished.length, count: drawing.count }));
  }

  // --- finished pictures -----------------------------------------------------------------

  /** Calls `use(results)` when the module is there; what it can do depends on all models. */
  async withResults(use) {
    try {
      const [{ Results }] = await Promise.all([import("./results.js"), this.models.listed().catch(() => {}), addStylesheet("results"), addTexts("results")]);
      this.results ??= new Results(this, this.#context);
      await use(this.results);
    } catch (error) {
      console.warn(error);
      offerReload();
    }
  }

  /** The buttons of the pictures, of which the first ones may be shown before their module is there. */
  showActions() {
    if ((this.results && this.models.list.get()) || this.actionsFor === drawing) return;
    this.actionsFor = drawing;
    this.withResults(() => this.stage.showActions());
  }

  /** A picture of the strip in the middle. */
  showStored(image) {
    if (drawing?.isActive) return void this.#context.navigate("gallery", { name: image.name });
    const shown = ofGallery(image);
    drawing = Object.assign(Object.create(Drawing.prototype), {
      phase: "done", count: 1, ratio: image.width / image.height || 1, images: [shown], fields: { model: image.model, prompt: image.prompt },
      progress: 0, waiting: null, error: null, startedAt: performance.now(), drawingSince: null,
    });
    this.follow();
    this.scrollToPictures();
    return undefined;
  }

  remedies(error) {
    const { t, navigate } = this.#context;
    const again = { label: t("common.retry"), primary: true, run: () => this.draw() };
    const model = this.models.find(this.state.model);
    if (error.code === "model.files_missing" && model)
      return [this.pulls.mayStart && { label: t("draw.model.pull"), primary: true, run: () => this.pulls.start(model) }, { label: t("draw.remedy.catalogue"), run: () => navigate("catalogue", { model: model.id }) }].filter(Boolean);
    if (error.code === "model.licence_not_accepted" && /^https?:/.test(model?.licence?.url ?? ""))
      return [{ label: t("draw.remedy.licence"), primary: true, run: () => window.open(model.licence.url, "_blank", "noopener") }, again];
    if (error.code === "image.size_not_allowed" && error.details?.nearest)
      return [{ label: t("draw.remedy.size", { size: String(error.details.nearest).replace("x", " × ") }), primary: true, run: () => (this.form.setValue("size", String(error.details.nearest)), this.draw()) }];
    if (/^(engine|gpu|comfyui)\./.test(error.code)) return [again, { label: t("draw.remedy.machine"), run: () => navigate("machine") }];
    return error.status >= 500 || error.status === 0 || error.status === 429 ? [again] : [];
  }

  // --- the rest ----------------------------------------------------------------------------------------

  /** Settings, images and the mode that another view hands over. */
  async takeOver(payload) {
    if (!payload) return;
    const { settings, images = [], mode } = payload;
    if (mode === "vary") return void (await this.withResults((results) => results.vary(images[0], settings.model)));
    if (settings) {
      const { t, toast } = this.#context;
      if (settings.model) await this.models.detail(settings.model).catch(() => this.models.listed().catch(() => {}));
      if (settings.model && this.models.list.get() && !this.models.find(settings.model)) toast(t("draw.model.gone", { name: settings.model }));
      if (settings.model && this.models.find(settings.model)) await this.choose(this.models.find(settings.model).id, { isFirst: true });
      const { seed, ...others } = settings;
      if (this.detail) this.form.apply(mode === "same-seed" ? { ...others, seed } : others);
    }
    if (images.length) await this.slot.addStored(images, { isFirst: true });
    this.saveSoon();
  }

  showStatus(status) {
    this.notice.hidden = !status.sketch;
    if (status.sketch) this.notice.textContent = this.#context.t("draw.sketches");
    this.picker.refresh();
  }

  showEmpty() {
    const { t } = this.#context;
    const examples = [1, 2, 3].map((number) => t(`draw.example_${number}`));
    this.stage.showEmpty(
      h("p", { class: "stage-hello" }, t("draw.empty")),
      h("div", { class: "examples" }, examples.map((text) => h("button", { type: "button", class: "chip", onclick: () => (this.form.setPrompt(text), this.form.focusPrompt()) }, text))),
    );
  }

  saveSoon() {
    clearTimeout(this.#saveTimer);
    this.#saveTimer = setTimeout(this.#save, SAVE_MS);
  }

  #save = () => {
    clearTimeout(this.#saveTimer);
    const { store } = this.#context;
    const state = withoutFiles(this.state);
    // Each tab goes on with its own form; a new tab begins with the last one.
    store.save("draw", state, "sessionStorage");
    store.save("draw", state);
  };
}

function loadState(store) {
  const kept = store.load("draw", null, "sessionStorage") ?? store.load("draw", null);
  const isUsable = kept && typeof kept === "object" && typeof kept.prompt === "string" && kept.values && typeof kept.values === "object";
  return isUsable ? kept : { model: null, prompt: "", values: {}, advanced: false };
}

/** Without images, which are too large for the browser's storage. */
function withoutFiles(state) {
  const values = Object.entries(state.values).map(([model, fields]) => [
    model,
    Object.fromEntries(Object.entries(fields).filter(([, value]) => !(typeof value === "string" && value.startsWith("data:")))),
  ]);
  return { ...state, values: Object.fromEntries(values) };
}

/** Whether the GPU has to be handed over before a picture can be drawn. */
function waitsForSwitch(status) {
  return Boolean(status?.stacks?.length) && status.mode === "inference" && !status.sketch;
}
