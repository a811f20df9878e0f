// What is known of an image, as a list of terms and values.

import { h } from "../dom.js";
import { bytes } from "../text.js";
import { dateTime } from "../times.js";
import { noteText, settingText } from "./notes.js";

const TASKS = new Set(["generate", "edit", "inpaint", "vary"]);
const SHOWN_APART = new Set(["prompt", "negative_prompt", "model", "seed", "size", "width", "height", "response_format"]);

/** The facts of an image: `[{term, value, isLong}]`, without those that are not known. `values` are texts. */
export function factsOf(image, t) {
  const settings = image.settings ?? {};
  const rows = [
    [t("gallery.prompt"), image.prompt, true],
    [t("gallery.negative_prompt"), image.negative_prompt, true],
    [t("gallery.model"), image.model],
    [t("gallery.task"), taskText(image.task, t)],
    [t("gallery.size"), image.width && `${image.width} × ${image.height}`],
    [t("gallery.seed"), image.seed],
    ...Object.entries(settings)
      .filter(([name]) => !SHOWN_APART.has(name))
      .map(([name, value]) => [name, settingText(value)]),
    [t("gallery.created"), image.created && dateTime(image.created)],
    [t("gallery.file"), image.size_bytes && `${kindOf(image)}, ${bytes(image.size_bytes)}`],
    [t("gallery.name"), image.name],
    [t("gallery.request"), image.request_id],
    [t("gallery.engine"), image.engine],
  ];
  return rows
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([term, value, isLong = false]) => ({ term, value: String(value), isLong }));
}

function taskText(task, t) {
  return TASKS.has(task) ? t(`gallery.task_${task}`) : task;
}

function kindOf(image) {
  return (image.mime ?? image.name.split(".").pop()).replace("image/", "").toUpperCase();
}

/** An element with everything that is known of `image`. `openSource(name)` shows an image that it was made from. */
export function detailsOf(image, { t, copy, openSource }) {
  const facts = factsOf(image, t).map(({ term, value, isLong }) =>
    h("div", { class: isLong ? "fact is-long" : "fact" }, h("dt", {}, term), isLong ? longText(value, t, copy) : h("dd", { dir: "auto" }, value)),
  );
  return h(
    "div",
    { class: "details" },
    image.model === null && image.prompt === null ? h("p", { class: "hint" }, t("gallery.unknown")) : null,
    h("dl", { class: "facts" }, ...facts),
    notes(t("gallery.adjusted"), image.adjusted),
    notes(t("gallery.ignored"), image.ignored),
    sources(image, t, openSource),
  );
}

function longText(value, t, copy) {
  return h(
    "dd",
    {},
    h("p", { dir: "auto", tabindex: "0" }, value),
    h("button", { type: "button", class: "quiet small", onclick: () => copy(value) }, t("gallery.copy")),
  );
}

function notes(title, entries) {
  if (!entries?.length) return null;
  const items = entries.map((entry) => h("li", { dir: "auto" }, noteText(entry)));
  return h("section", { class: "image-notes" }, h("h3", {}, title), h("ul", {}, ...items));
}

function sources(image, t, openSource) {
  if (!image.sources?.length) return null;
  const items = image.sources.map((name) =>
    h("li", {}, h("button", { type: "button", class: "link", onclick: () => openSource(name) }, name)),
  );
  return h("section", { class: "image-notes" }, h("h3", {}, t("gallery.sources")), h("ul", {}, ...items));
}
