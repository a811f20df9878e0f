// A picture and what it was made from, over the whole window.

import "../more_icons.js";
import { h, iconButton } from "../dom.js";
import { t } from "../text.js";
import { Compare } from "./compare.js";

/**
 * `before`: a blob or a URL. `after`: {url, width, height}. `sides` ({left, top, right, bottom} in pixels of `after`): how far
 * the image was extended.
 */
export function openCompare({ before, after, sides = null }) {
  const isBlob = before instanceof Blob;
  const url = isBlob ? URL.createObjectURL(before) : before;
  const compare = new Compare();
  compare.pair = { before: { url }, after, place: sides && placeOf(sides, after) };
  const dialog = h(
    "dialog",
    { class: "compare-dialog", "aria-label": t("edit.compare.label") },
    compare,
    iconButton("close", t("edit.picker.close"), { onclick: () => dialog.close() }),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (isBlob) URL.revokeObjectURL(url);
  });
  document.body.append(dialog);
  dialog.showModal();
  compare.focusLine();
}

function placeOf({ left = 0, top = 0, right = 0, bottom = 0 }, { width, height }) {
  return { left, top, width: width - left - right, height: height - top - bottom };
}
