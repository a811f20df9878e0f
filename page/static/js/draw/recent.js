// The strip of the latest pictures, of all clients that this key may see, as they appear.

import { h } from "../dom.js";
import { t } from "../text.js";

const COUNT = 24;

/** {element, add(images), unmount()}; `onChoose(image)`. */
export function createRecent({ api, live, onChoose }) {
  let images = [];
  const list = h("ul", { class: "recent-list" });
  const element = h("nav", { class: "recent", "aria-label": t("draw.recent"), hidden: true }, list);

  function show() {
    element.hidden = images.length === 0;
    const known = new Map([...list.children].map((item) => [item.dataset.name, item]));
    list.replaceChildren(...images.map((image) => known.get(image.name) ?? item(image)));
  }

  function item(image) {
    const picture = h("img", { src: api.thumbnailUrl(image.name), alt: "", loading: "lazy", decoding: "async", width: 88, height: 88 });
    const button = h(
      "button",
      { type: "button", "aria-label": image.prompt ? t("draw.recent_one", { prompt: image.prompt.slice(0, 120) }) : t("draw.recent_unknown"), onclick: () => onChoose(image) },
      picture,
    );
    const element = h("li", { dataset: { name: image.name } }, button);
    picture.addEventListener("error", () => remove(image.name));
    return element;
  }

  function remove(name) {
    images = images.filter((image) => image.name !== name);
    show();
  }

  function add(image) {
    images = [image, ...images.filter(({ name }) => name !== image.name)].slice(0, COUNT);
    show();
  }

  async function load() {
    try {
      images = (await api.request(`api/images?limit=${COUNT}`)).images;
      show();
    } catch {
      // Without the gallery there is no strip.
    }
  }

  const unsubscribe = [
    live.subscribe("image", ({ change, image }) => (change === "removed" ? remove(image.name) : change === "added" ? add(image) : null)),
    live.subscribe("resync", load),
  ];
  load();
  return { element, unmount: () => unsubscribe.forEach((end) => end()) };
}
