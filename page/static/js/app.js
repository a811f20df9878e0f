// Starts the page: texts, live events, the key, and the view that the address names.

import * as api from "./api.js";
import { confirm } from "./dialogs.js";
import { h, icon, iconButton } from "./dom.js";
import * as live from "./live.js";
import { startStatusLine } from "./status_line.js";
import * as store from "./store.js";
import { addStylesheet } from "./stylesheets.js";
import { addErrorTexts, addTexts, loadTexts, t, translate } from "./text.js";
import { announce, offerReload, toast } from "./toasts.js";
import * as draw from "./draw/view.js";

const VIEWS = {
  draw: { load: async () => draw },
  gallery: { load: () => import("./gallery/view.js"), css: ["gallery"], texts: ["gallery"] },
  machine: { load: () => import("./machine/view.js"), css: ["machine"], texts: ["machine"] },
  // With the gauges, problems and downloads of Machine.
  catalogue: { load: () => import("./catalogue/view.js"), css: ["catalogue", "machine"], texts: ["catalogue", "machine"] },
};

const context = { api, live, t, store, navigate, toast, announce, confirm };
const main = document.getElementById("main");
let shown = { name: null, view: null };
let opening = 0;
let payload = null;

/** Opens a view. `handedOver` is for its `mount` as `context.payload`: what another view hands over. */
function navigate(name, handedOver = null) {
  payload = handedOver;
  const hash = `#${name}`;
  if (location.hash === hash) show(name);
  else location.hash = hash;
}

function nameInAddress() {
  const name = location.hash.slice(1).split("/")[0];
  return Object.hasOwn(VIEWS, name) ? name : "draw";
}

async function show(name) {
  const turn = ++opening;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  let module;
  try {
    const { load, css = [], texts = [] } = VIEWS[name];
    [module] = await Promise.all([load(), ...css.map(addStylesheet), ...texts.map(addTexts)]);
    if (name !== "draw") await addErrorTexts(); // the errors that the status has
  } catch {
    if (turn === opening) offerReload();
    return;
  }
  if (turn !== opening) return;
  const isFirst = shown.name === null;
  shown.view?.unmount();
  main.replaceChildren();
  main.className = `view-${name}`;
  const handedOver = payload;
  payload = null;
  shown = { name, view: null };
  try {
    const view = await module.mount(main, { ...context, payload: handedOver });
    // Another view was opened meanwhile: this one must neither go on nor take the focus.
    if (turn !== opening) return void view.unmount();
    shown.view = view;
  } catch (error) {
    console.error(error);
    if (turn !== opening) return;
    main.replaceChildren(h("p", { class: "empty" }, t("common.view_failed")));
  }
  document.title = name === "draw" ? "Easel" : `${t(`common.title_${name}`)} · Easel`;
  // Screen readers and the keyboard go on in the new view.
  if (!isFirst) main.focus({ preventScroll: true });
}

function setKey(key) {
  api.setKey(key);
  location.reload();
}

function start() {
  for (const slot of document.querySelectorAll("[data-icon]")) slot.replaceChildren(icon(slot.dataset.icon));
  startPreferences(document.getElementById("preferences"));
  startStatusLine(document.getElementById("status-line"));
  document.querySelector(".skip-link").addEventListener("click", (event) => {
    event.preventDefault(); // the address names the view
    main.focus();
  });
  showHint();
}

/** The button of the menu, which is loaded when it is first opened. */
function startPreferences(element) {
  const menu = h("div", { class: "menu", id: "preferences-menu", popover: true });
  const label = t("common.preferences");
  const button = h("button", { type: "button", class: "icon-button", popovertarget: "preferences-menu", "aria-label": label, title: label }, icon("settings"));
  const change = async () => {
    const key = await askForKey();
    if (key) setKey(key);
  };
  const keys = { get: api.getKey, change, forget: () => setKey(null) };
  menu.addEventListener("beforetoggle", async ({ newState }) => {
    if (newState !== "open") return;
    try {
      const [{ fillMenu }] = await Promise.all([import("./menu/preferences.js"), addTexts("menu")]);
      fillMenu(menu, { onLanguage: () => location.reload(), keys });
    } catch {
      menu.hidePopover();
      offerReload();
    }
  });
  element.replaceChildren(button, menu);
}

/** The promise of a key that works, or of null; `signal` closes the dialog. */
async function askForKey(signal = null) {
  try {
    const [dialog] = await Promise.all([import("./menu/key_dialog.js"), addTexts("menu")]);
    return signal?.aborted ? null : await dialog.askForKey(api.keyWorks, signal);
  } catch {
    offerReload();
    return null;
  }
}

/** One line for who opens the page for the first time in this browser. */
function showHint() {
  if (store.load("hint_seen", false)) return;
  const hint = h("div", { class: "notice" }, h("p", {}, t("common.hint")));
  const close = () => {
    hint.remove();
    store.save("hint_seen", true);
  };
  hint.append(iconButton("close", t("common.close"), { onclick: close }));
  document.getElementById("notices").append(hint);
}

await loadTexts();
translate();
api.onKeyNeeded(askForKey);
api.connect();
start();
addEventListener("hashchange", () => show(nameInAddress()));
await show(nameInAddress());
document.documentElement.dataset.ready = "";
