// The images in the form of Draw. The tools for them are loaded with the first image: until then this is a button, and it
// takes what is dropped on the page or pasted.

import { canTake, droppedIn } from "../edit/dropped.js";
import { h, icon, iconButton, replaceChildren } from "../dom.js";
import { addTexts, t } from "../text.js";
import { addStylesheet } from "../stylesheets.js";

/** The panel outlives the view, so that images and masks are there again after a look into the gallery. */
let panel = null;

/**
 * {element, panel(), setModel(model), task, problem, decides, hasImages, read(), add(files), addStored(images), clear(), unmount()}.
 * `read()` is what <easel-edit-panel>.read() gives, or null without an image. `onChange()` is called after each change,
 * `onError(error)` if the tools could not be loaded.
 */
export function createEditSlot({ onChange, onError }) {
  let model = null;
  let loading = null;
  let isGone = false;

  const files = h("input", {
    type: "file",
    accept: "image/*,.heic,.heif",
    multiple: true,
    hidden: true,
    onchange: () => {
      add([...files.files]);
      files.value = "";
    },
  });
  const button = h(
    "button",
    { type: "button", class: "edit-start", onclick: () => files.click() },
    icon("image"),
    h("span", {}, t("draw.image.add")),
    h("span", { class: "hint" }, t("draw.image.add_hint")),
  );
  const fromGallery = iconButton("gallery", t("draw.image.from_gallery"), { onclick: () => pick() });
  const element = h("div", { class: "edit-slot" }, files, h("div", { class: "edit-start-row" }, button, fromGallery));
  if (panel) show();

  async function load() {
    const [{ EditPanel }] = await Promise.all([import("../edit/edit_panel.js"), addStylesheet("edit"), addTexts("edit"), import("./edit_stage.js")]);
    panel ??= new EditPanel();
    panel.model = model;
    show();
  }

  function show() {
    if (isGone || element.contains(panel)) return;
    panel.addEventListener("change", onChange);
    replaceChildren(element, panel);
  }

  async function pick() {
    try {
      const [{ pickStored }] = await Promise.all([import("../edit/gallery_picker.js"), addStylesheet("edit"), addTexts("edit")]);
      await addStored(await pickStored({ count: model?.limits?.images?.edit?.max ?? 1 }));
    } catch (error) {
      onError(error);
    }
  }

  /** The panel, loaded when it is first needed. A load that failed is tried again the next time. */
  async function loaded() {
    try {
      if (!panel) await (loading ??= load());
    } catch (error) {
      loading = null;
      throw error;
    }
    show(); // it may have been loaded for a form that is gone
    return panel;
  }

  async function add(list) {
    try {
      if (list.length) await (await loaded()).add(list);
    } catch (error) {
      onError(error);
    }
  }

  async function addStored(images, options = {}) {
    try {
      if (images.length) await (await loaded()).addStored(images, options);
    } catch (error) {
      onError(error);
    }
  }

  // While the panel is there it takes what is pasted itself, and what is dropped on it.
  const onPaste = (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (panel || !pasted.length || (isField(event.target) && event.clipboardData.getData("text/plain"))) return;
    event.preventDefault();
    add(pasted);
  };
  const onDragOver = (event) => {
    if (event.defaultPrevented || !canTake(event)) return;
    event.preventDefault();
    element.classList.add("is-target");
  };
  const onDragEnd = () => element.classList.remove("is-target");
  const onDrop = (event) => {
    onDragEnd();
    if (event.defaultPrevented || !canTake(event)) return;
    const { files: dropped, stored } = droppedIn(event);
    if (isField(event.target) && !stored && !dropped.length) return; // a link that is dropped into a text
    event.preventDefault(); // otherwise the browser leaves the page and shows the file
    if (stored) addStored([{ name: stored }]);
    else add(dropped);
  };
  const listeners = { paste: onPaste, dragover: onDragOver, dragleave: onDragEnd, drop: onDrop };
  for (const [type, listener] of Object.entries(listeners)) document.addEventListener(type, listener);

  return {
    element,
    add,
    addStored,
    panel: () => panel,
    clear: () => panel?.clear(),
    read: async () => (panel?.images.length ? panel.read() : null),
    setModel(next) {
      model = next;
      if (panel) panel.model = next;
    },
    get task() {
      return panel?.task ?? null;
    },
    get problem() {
      return panel?.problem ?? null;
    },
    /** Names of fields that the images decide: an extended picture has the size that follows from its sides. */
    get decides() {
      return panel?.images.length && panel.mode === "extend" ? ["size"] : [];
    },
    get hasImages() {
      return Boolean(panel?.images.length);
    },
    unmount() {
      isGone = true;
      panel?.removeEventListener("change", onChange);
      for (const [type, listener] of Object.entries(listeners)) document.removeEventListener(type, listener);
    },
  };
}

function isField(element) {
  return element instanceof Element && element.matches("textarea, input, [contenteditable]");
}
