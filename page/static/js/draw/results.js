// What can be done with a finished picture: look at it on the whole screen, edit, compare, vary, enlarge. Loaded with the
// first picture.

import "../more_icons.js";
import { download } from "../gallery/actions.js";
import { addStylesheet } from "../stylesheets.js";
import { addTexts, hasText } from "../text.js";
import { offerReload } from "../toasts.js";
import { randomSeed } from "./drawing.js";
import { varies } from "./models.js";
import { parseSize } from "./sizes.js";

const RESULT_ICONS = { edit: "edit", vary: "vary", upscale: "upscale", background: "background" };

export class Results {
  /** `view`: the view Draw, of which it uses models, form, slot, stage, container, isDrawing, once() and begin(). */
  constructor(view, context) {
    this.view = view;
    this.context = context;
  }

  /** [{id, label, icon, run}] for a finished picture; `of`: its drawing. */
  actions(image, of) {
    const { t } = this.context;
    const results = [
      { id: "download", label: t("results.download"), icon: "download", run: () => this.download(image) },
      { id: "edit", label: t("results.edit"), icon: "edit", run: () => this.edit(image) },
    ];
    if (image.seed !== null && image.seed !== undefined && this.view.form.input("seed"))
      results.push({ id: "seed", label: t("results.same_seed"), icon: "lock", run: () => this.sameSeed(image) });
    const before = of?.source ?? null;
    if (before) results.push({ id: "compare", label: t("results.compare"), icon: "compare", run: () => this.compare(image, before) });
    return [...results, ...this.tools(image, of)];
  }

  /** Under the name that the gallery gives it. */
  async download(image) {
    const { t, api, toast } = this.context;
    try {
      const stored = await this.stored(image);
      if (!stored) return void toast(t("draw.gone"), { kind: "error" });
      await download(api, [stored]);
    } catch {
      toast(t("common.unreachable"), { kind: "error" });
    }
    return undefined;
  }

  async compare(image, { image: before, sides }) {
    try {
      const [{ openCompare }] = await Promise.all([import("../edit/compare_dialog.js"), addStylesheet("edit"), addTexts("edit")]);
      openCompare({ before, sides, after: { url: image.url, ...parseSize(image.size) } });
    } catch {
      offerReload();
    }
  }

  /** One-click actions of models that can be used now: vary, enlarge, remove the background. */
  tools(image, of) {
    const { t, live } = this.context;
    if (!live.may("draw")) return [];
    const list = this.view.models.list.get() ?? [];
    const model = this.view.models.find(image.hal0.model ?? of?.fields.model);
    const tool = (family) => list.find((each) => each.family === family && each.tasks.includes("vary") && this.view.models.stateOf(each).kind === "ready" && fits(each, image.size));
    const found = [
      model && this.mayVary(model) && { id: "vary", model },
      { id: "upscale", model: tool("upscaler") },
      { id: "background", model: tool("background removal") },
    ];
    return found
      .filter((each) => each?.model && hasText(`results.${each.id}`))
      .map(({ id, model: using }) => ({ id, label: t(`results.${id}`), icon: RESULT_ICONS[id], run: () => this.runTool(id, using, image) }));
  }

  mayVary(model) {
    return varies(model) && this.view.models.stateOf(model).kind === "ready";
  }

  async runTool(id, model, image) {
    if (this.view.isDrawing) return void this.context.toast(this.context.t("results.busy"));
    await this.view.once(async () => {
      const blob = await fetchBlob(image.url);
      const size = parseSize(image.size);
      // Tools have no seed; for models that also edit, only the path says that the prompt is left out.
      const [path, seed] = id === "vary" ? ["v1/images/variations", { seed: randomSeed() }] : ["v1/images/edits", {}];
      this.view.begin({ path, fields: { model: model.id, ...seed }, count: 1, ratio: size ? size.width / size.height : 1, parts: [["image", blob, nameOf(image.url)]], source: { image: blob, sides: null } });
    }, this.context.t("draw.gone"));
  }

  /** A variation of a stored picture, by the model that drew it. */
  async vary(image, id) {
    const { t, toast } = this.context;
    try {
      const model = await this.view.models.detail(id);
      await this.runTool("vary", model, { url: image.url, size: `${image.width}x${image.height}` });
    } catch (error) {
      toast(error.message || t("common.unreachable"), { kind: "error" });
    }
  }

  edit(image) {
    this.view.slot.addStored([{ name: nameOf(image.url), url: image.url }], { isFirst: true });
    this.view.form.element.scrollIntoView({ block: "start" });
  }

  sameSeed(image) {
    this.view.form.setValue("seed", String(image.seed));
    this.context.toast(this.context.t("results.seed_locked", { seed: String(image.seed) }));
  }

  /** Pictures of a drawing on the whole screen, as the gallery shows them. */
  async open(images, index) {
    const { t, toast } = this.context;
    try {
      const [stored] = await Promise.all([
        Promise.all(images.map((image) => this.stored(image))),
        import("../gallery/lightbox.js"),
        addStylesheet("gallery"),
        addTexts("gallery"),
      ]);
      const [kept, chosen] = [stored.filter(Boolean), stored[index]];
      if (chosen) this.lightbox(kept).open({ images: () => kept }, chosen.name);
      else toast(t("draw.gone"), { kind: "error" });
    } catch {
      offerReload();
    }
  }

  /** What the gallery knows of a picture; less if it cannot be asked, and null if the picture is deleted. */
  async stored(image) {
    const name = nameOf(image.url);
    try {
      return await this.context.api.request(`api/images/${encodeURIComponent(name)}`);
    } catch (error) {
      if (error.status === 404) {
        this.view.lose([name]);
        return null;
      }
      const { width, height } = parseSize(image.size) ?? {};
      const { model = null, adjusted = [], ignored = [] } = image.hal0;
      return { name, width, height, model, prompt: null, seed: image.seed, favourite: false, adjusted, ignored };
    }
  }

  close() {
    this.box?.close();
  }

  /** These stored images are deleted. */
  lose(names) {
    this.shown?.splice(0, this.shown.length, ...this.shown.filter(({ name }) => !names.includes(name)));
    this.box?.refresh(names);
  }

  lightbox(stored) {
    this.box?.remove();
    this.shown = stored;
    this.box = Object.assign(document.createElement("easel-lightbox"), { context: this.context });
    this.box.addEventListener("changed", ({ detail }) => {
      const changed = new Map(detail.images.map((image) => [image.name, image]));
      stored.splice(0, stored.length, ...stored.map((image) => changed.get(image.name) ?? image));
    });
    this.box.addEventListener("deleted", ({ detail: { names } }) => this.view.lose(names));
    // The button that had opened it is gone with a deleted picture.
    this.box.addEventListener("closed", () => this.box.opener?.isConnected || this.view.container.focus({ preventScroll: true }));
    this.view.container.append(this.box);
    return this.box;
  }
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
