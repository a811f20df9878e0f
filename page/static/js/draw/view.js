// The view Draw: the form, the pictures in the middle, the latest ones beside it.

import { h, iconButton } from "../dom.js";
import { addStylesheet } from "../stylesheets.js";
import { hasText } from "../text.js";
import { Drawing, ofGallery, randomSeed } from "./drawing.js";
import { createEditSlot } from "./edit_slot.js";
import { createEditStage } from "./edit_stage.js";
import { setLastSeed } from "./fields.js";
import { createForm } from "./form.js";
import { createModelPicker } from "./model_picker.js";
import { createModels } from "./models.js";
import { createPulls } from "./pulls.js";
import { createRecent } from "./recent.js";
import { choicesOf, parseSize, ratioOf } from "./sizes.js";
import { createStage } from "./stage.js";

const SAVE_MS = 400;
const RESULT_ICONS = { edit: "edit", vary: "vary", upscale: "upscale", background: "background" };

// A drawing goes on while another view is open.
let drawing = null;

export async function mount(container, context) {
  const view = new DrawView(container, context);
  await view.start();
  return { unmount: () => view.unmount() };
}

class DrawView {
  #context;
  #container;
  #saveTimer = null;
  #ends = [];

  constructor(container, context) {
    this.#container = container;
    this.#context = context;
    const { api, live, toast, t } = context;
    this.state = loadState(context.store);
    this.models = createModels(context);
    this.pulls = createPulls({ ...context, onChange: () => this.picker?.refresh() });
    this.picker = createModelPicker({
      models: this.models,
      pulls: this.pulls,
      onChoose: (model) => this.choose(model.id),
      waitsForSwitch: () => waitsForSwitch(live.latest("status")),
    });
    this.slot = createEditSlot({
      onChange: () => this.imagesChanged(),
      onError: () => toast(t("common.view_missing"), { kind: "error" }),
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
      actions: (image, of) => this.actions(image, of),
      remedies: (error) => this.remedies(error),
      onOpen: (images, index) => this.open(images, index),
    });
    this.editStage = createEditStage({ stage: this.stage.element, hasPictures: () => drawing !== null, onkeydown: this.form.onkeydown });
    this.recent = createRecent({ api, live, onChoose: (image) => this.showStored(image) });
    this.notice = h("p", { class: "sketch-notice", hidden: true });
  }

  async start() {
    const { live } = this.#context;
    const view = h("div", { class: "draw-view" }, this.form.element, h("div", { class: "stage-column" }, this.notice, this.editStage.element, this.stage.element), this.recent.element);
    this.#container.append(h("h1", { class: "visually-hidden" }, this.#context.t("draw.title")), view);
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
    for (const part of [this.models, this.pulls, this.recent, this.slot, this.stage, this.editStage]) part.unmount();
    if (drawing) {
      drawing.onChange = () => {};
      drawing.onPreview = (of, index, bitmap) => bitmap.close();
    }
  }

  async loadModels() {
    const { t } = this.#context;
    try {
      await this.models.load();
    } catch (error) {
      if (error.name === "AbortError") return;
      const retry = { label: t("common.retry"), primary: true, run: () => (this.showEmpty(), this.loadModels()) };
      this.form.showProblem(t("draw.problem.models"));
      this.stage.showEmpty(h("p", {}, error.message || t("common.unreachable")), h("button", { type: "button", class: "button", onclick: retry.run }, retry.label));
      return;
    }
    this.form.showProblem(null);
    const known = this.models.find(this.state.model);
    await this.choose(known?.id ?? this.models.defaultId(), { isFirst: true });
    this.#ends.push(this.models.list.subscribe(() => this.refreshModel()));
  }

  async refreshModel() {
    const known = this.models.find(this.state.model);
    await this.choose(known?.id ?? this.models.defaultId(), { isFirst: true });
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

  begin(request) {
    drawing = new Drawing(request, this.#context, {});
    drawing.steps = Number(request.fields.steps ?? this.form.valueOf("steps") ?? 0);
    drawing.batch = this.detail?.limits?.batch ?? 1;
    this.follow();
    drawing.run();
    if (matchMedia("(max-width: 760px)").matches) scrollTo({ top: 0 });
  }

  /** Show what runs, also after another view was open. */
  follow() {
    drawing.onChange = (changed) => changed === drawing && this.changed();
    drawing.onPreview = (changed, index, bitmap) => (changed === drawing ? this.stage.preview(index, bitmap) : bitmap.close());
    this.stage.show(drawing);
    this.editStage.showPictures();
    this.form.setBusy(drawing.isActive);
  }

  imagesChanged() {
    this.form.showInputs();
    this.editStage.update(this.slot.panel());
  }

  changed() {
    const { t, announce } = this.#context;
    this.stage.update();
    this.form.setBusy(drawing.isActive);
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
    if (drawing.phase === "waiting") announce(t("draw.waiting_for", { what: drawing.waiting.waits_for ?? "" }));
    else if (drawing.phase === "reconnecting") announce(t("draw.reconnecting"));
    else if (drawing.finished.length) announce(t("draw.picture_number", { index: drawing.finished.length, count: drawing.count }));
  }

  // --- what can be done with a picture -----------------------------------------------------------------

  actions(image, of) {
    const { t } = this.#context;
    const results = [
      { id: "download", label: t("draw.action.download"), icon: "download", run: () => download(image.url) },
      { id: "edit", label: t("draw.action.edit"), icon: "edit", run: () => this.edit(image) },
    ];
    if (image.seed !== null && image.seed !== undefined && this.form.input("seed"))
      results.push({ id: "seed", label: t("draw.action.same_seed"), icon: "lock", run: () => this.sameSeed(image) });
    const before = of?.source ?? null;
    if (before) results.push({ id: "compare", label: t("edit.action.compare"), icon: "compare", run: () => this.compare(image, before) });
    return [...results, ...this.tools(image, of)];
  }

  async compare(image, { image: before, sides }) {
    try {
      const [{ openCompare }] = await Promise.all([import("../edit/compare_dialog.js"), addStylesheet("edit")]);
      openCompare({ before, sides, after: { url: image.url, ...parseSize(image.size) } });
    } catch {
      this.#context.toast(this.#context.t("common.view_missing"), { kind: "error" });
    }
  }

  /** One-click actions of models that can be used now: vary, enlarge, remove the background. */
  tools(image, of) {
    const { t } = this.#context;
    const list = this.models.list.get() ?? [];
    const model = this.models.find(image.hal0.model ?? of?.fields.model);
    const tool = (family) => list.find((each) => each.family === family && each.tasks.includes("vary") && this.models.stateOf(each).kind === "ready" && fits(each, image.size));
    const found = [
      model?.tasks.includes("vary") && { id: "vary", model },
      { id: "upscale", model: tool("upscaler") },
      { id: "background", model: tool("background removal") },
    ];
    return found
      .filter((each) => each?.model && hasText(`draw.action.${each.id}`))
      .map(({ id, model: using }) => ({ id, label: t(`draw.action.${id}`), icon: RESULT_ICONS[id], run: () => this.runTool(id, using, image) }));
  }

  async runTool(id, model, image) {
    if (drawing?.isActive) return void this.#context.toast(this.#context.t("draw.busy"));
    await this.once(async () => {
      const blob = await fetchBlob(image.url);
      const size = parseSize(image.size);
      // Tools have no seed; for models that also edit, only the path says that the prompt is left out.
      const [path, seed] = id === "vary" ? ["v1/images/variations", { seed: randomSeed() }] : ["v1/images/edits", {}];
      this.begin({ path, fields: { model: model.id, ...seed }, count: 1, ratio: size ? size.width / size.height : 1, parts: [["image", blob, nameOf(image.url)]], source: { image: blob, sides: null } });
    }, this.#context.t("draw.gone"));
  }

  edit(image) {
    this.slot.addStored([{ name: nameOf(image.url), url: image.url }], { isFirst: true });
    this.form.element.scrollIntoView({ block: "start" });
  }

  sameSeed(image) {
    this.form.setValue("seed", String(image.seed));
    this.#context.toast(this.#context.t("draw.seed_locked", { seed: String(image.seed) }));
  }

  open(images, index) {
    const dialog = h("dialog", { class: "viewer", "aria-label": this.#context.t("draw.picture") });
    let shown = index;
    const picture = h("img", { alt: "" });
    const show = (next) => {
      shown = (next + images.length) % images.length;
      picture.src = images[shown].url;
      picture.alt = this.#context.t("draw.picture_number", { index: shown + 1, count: images.length });
    };
    const close = iconButton("close", this.#context.t("common.close"), { onclick: () => dialog.close() });
    dialog.append(picture, close);
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step && images.length > 1) show(shown + step);
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    show(index);
    document.body.append(dialog);
    dialog.showModal();
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
    if (settings) {
      const { t, toast } = this.#context;
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

function fits({ size }, text) {
  const [max, wanted] = [parseSize(size?.max), parseSize(text)];
  if (!max || !wanted) return true;
  return wanted.width <= max.width && wanted.height <= max.height && wanted.width * wanted.height <= (size.max_pixels ?? Infinity);
}

function nameOf(url) {
  return url.split("/").at(-1);
}

async function fetchBlob(url) {
  const response = await fetch(url, { credentials: "omit" });
  if (!response.ok) throw new Error(url);
  return response.blob();
}

function download(url) {
  const link = h("a", { href: url, download: nameOf(url) });
  document.body.append(link);
  link.click();
  link.remove();
}
