// Stylesheets of views and parts, loaded when they are first needed.

import { h } from "./dom.js";

const stylesheets = new Map();

/** Loads css/NAME.css once; waits for it, so that nothing appears without. */
export function addStylesheet(name) {
  if (!stylesheets.has(name)) {
    const link = h("link", { rel: "stylesheet", href: new URL(`../css/${name}.css`, import.meta.url).href });
    const loaded = new Promise((resolve, reject) => {
      link.addEventListener("load", resolve);
      link.addEventListener("error", () => (stylesheets.delete(name), link.remove(), reject(new Error(name))));
    });
    stylesheets.set(name, loaded);
    document.head.append(link);
  }
  return stylesheets.get(name);
}
