// The field for the size: ratios to click, and the exact numbers.

import { h, iconButton, replaceChildren, svg } from "../dom.js";
import { number, t } from "../text.js";
import { choicesOf, formatSize, limitsOf, parseSize, problemOf, ratioOf } from "./sizes.js";

/** {element, focus()}; `value` is "WxH" or null for the default. `onChange("WxH"|null)`. */
export function sizeField(input, value, onChange) {
  const limits = limitsOf(input);
  // Without a default, which is so in edits, null means the size of the image.
  const automatic = input.default === null;
  let current = parseSize(value ?? input.default);
  const choices = choicesOf(input);

  const chips = h("div", { class: "ratio-chips", role: "group", "aria-label": t("draw.size.ratio") });
  const width = sizeInput("width", t("draw.size.width"));
  const height = sizeInput("height", t("draw.size.height"));
  const problem = h("p", { class: "field-error", id: "size-problem", role: "status" });
  const exact = h(
    "div",
    { class: "size-exact" },
    width,
    iconButton("swap", t("draw.size.swap"), { class: "icon-button small", onclick: swap }),
    height,
  );

  function sizeInput(side, label) {
    return h("input", {
      type: "number",
      inputmode: "numeric",
      "aria-label": label,
      title: label,
      "aria-describedby": "size-problem",
      min: limits.min[side],
      max: limits.max[side],
      step: limits.multiple,
      oninput: () => set({ width: Number(width.value), height: Number(height.value) }, false),
    });
  }

  function swap() {
    if (current) set({ width: current.height, height: current.width });
  }

  function set(size, writes = true) {
    current = size;
    show(writes);
    onChange(size ? formatSize(size) : null);
  }

  function show(writes = true) {
    if (writes) {
      width.value = current?.width ?? "";
      height.value = current?.height ?? "";
    }
    const why = current && problemOf(current, limits);
    const values = { min: input.min, max: input.max, multiple: limits.multiple, pixels: number(limits.maxPixels) };
    problem.textContent = why ? t(`draw.size.problem_${why}`, values) : "";
    problem.classList.toggle("hint", why === "multiple");
    for (const field of [width, height]) field.setAttribute("aria-invalid", why !== null && why !== "multiple" && current !== null);
    replaceChildren(
      chips,
      automatic && ratioChip(t("draw.size.of_image"), null, current === null),
      choices.map(({ ratio, size }) => ratioChip(ratio, size, current !== null && ratioOf(current) === ratio)),
    );
  }

  // The buttons stay, so that the focus does: only what they show changes.
  function ratioChip(label, size, isChosen) {
    return h(
      "button",
      { type: "button", class: "ratio-chip", "aria-pressed": String(isChosen), title: size ? `${size.width} × ${size.height}` : label, onclick: () => choose(label, size) },
      size && ratioIcon(size),
      h("span", {}, label),
    );
  }

  function choose(label, size) {
    set(size);
    [...chips.children].find((chip) => chip.textContent === label)?.focus();
  }

  show();
  return h("fieldset", { class: "field size-field" }, h("legend", {}, t("draw.field.size")), chips, exact, problem);
}

function ratioIcon({ width, height }) {
  const scale = 14 / Math.max(width, height);
  const [across, down] = [width * scale, height * scale];
  return svg(
    "svg",
    { viewBox: "0 0 16 16", width: 16, height: 16, class: "icon", "aria-hidden": "true" },
    svg("rect", { x: 8 - across / 2, y: 8 - down / 2, width: across, height: down, rx: 1.5, "stroke-width": 1.5 }),
  );
}
