// One element for each kind of input that a model declares.

import { h, icon, iconButton, replaceChildren } from "../dom.js";
import { addTexts, hasText, number, t } from "../text.js";
import { sizeField } from "./size_field.js";

const FEW = 4;
let lastId = 0;

/** The element for `input`; `value` undefined means its default. `onChange(value)` with undefined for the default. */
export function field(input, value, onChange) {
  const make = MAKERS[input.type];
  return make ? make(input, value, onChange) : null;
}

const MAKERS = {
  integer: numberField,
  number: numberField,
  boolean: booleanField,
  choice: choiceField,
  string: textField,
  size: (input, value, onChange) => sizeField(input, value, (size) => onChange(size ?? undefined)),
  seed: seedField,
  loras: loraField,
  image: imageField,
};

/** What people call the input. */
export function labelOf({ name }) {
  const key = `draw.field.${name}`;
  if (hasText(key)) return t(key);
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** The label of one choice of an input. */
function choiceLabel({ name }, value) {
  const key = `draw.choice.${name}.${value}`;
  return hasText(key) ? t(key) : String(value);
}

function newId(name) {
  return `field-${name}-${++lastId}`;
}

function hintOf(input) {
  const key = `draw.hint.${input.name}`;
  return hasText(key) ? t(key) : null;
}

function wrap(input, id, ...children) {
  const hint = hintOf(input) ?? input.description;
  return h(
    "div",
    { class: "field", dataset: { name: input.name } },
    h("label", { for: id, title: hint }, labelOf(input)),
    ...children,
  );
}

function numberField(input, value, onChange) {
  const id = newId(input.name);
  const shown = value ?? input.default ?? "";
  const step = input.step ?? (input.type === "integer" ? 1 : "any");
  const limits = { min: input.min, max: input.max, step };
  const send = (text) => onChange(text === "" ? undefined : Number(text));
  const box = h("input", {
    type: "number",
    id,
    class: "number-box",
    inputmode: input.type === "integer" ? "numeric" : "decimal",
    ...limits,
    value: shown,
    placeholder: input.default === null ? t("draw.automatic") : null,
    oninput: () => {
      const isValid = box.validity.valid;
      box.setAttribute("aria-invalid", String(!isValid));
      if (slider && box.value !== "") slider.value = box.value;
      if (isValid) send(box.value);
    },
    onblur: () => {
      // What the model does not allow becomes the nearest number that it does.
      if (box.value === "" || box.validity.valid) return;
      const whole = Number(box.value);
      const near = Math.min(input.max ?? whole, Math.max(input.min ?? whole, whole));
      box.value = input.type === "integer" ? Math.round(near) : near;
      box.setAttribute("aria-invalid", "false");
      if (slider) slider.value = box.value;
      send(box.value);
    },
  });
  const hasRange = input.min !== null && input.max !== null && input.default !== null;
  const slider = hasRange
    ? h("input", {
        type: "range",
        "aria-label": labelOf(input),
        ...limits,
        step: typeof step === "number" ? step : (input.max - input.min) / 100,
        value: shown,
        oninput: () => {
          box.value = slider.value;
          box.setAttribute("aria-invalid", "false");
          send(slider.value);
        },
      })
    : null;
  return wrap(input, id, h("div", { class: "number-row" }, slider, box));
}

function booleanField(input, value, onChange) {
  const box = h("input", {
    type: "checkbox",
    checked: value ?? input.default ?? false,
    onchange: () => onChange(box.checked === (input.default ?? false) ? undefined : box.checked),
  });
  return h("label", { class: "check-field", dataset: { name: input.name }, title: input.description }, box, labelOf(input));
}

function choiceField(input, value, onChange) {
  const shown = value ?? input.default;
  const send = (chosen) => onChange(chosen === input.default ? undefined : chosen);
  return input.choices.length <= FEW ? segments(input, shown, send) : select(input, shown, send);
}

function segments(input, shown, send) {
  const name = newId(input.name);
  return h(
    "fieldset",
    { class: "field", dataset: { name: input.name }, title: input.description },
    h("legend", {}, labelOf(input)),
    h(
      "div",
      { class: "segments" },
      input.choices.map((choice) =>
        h(
          "label",
          {},
          h("input", { type: "radio", name, value: choice, checked: choice === shown, onchange: () => send(choice) }),
          h("span", {}, choiceLabel(input, choice)),
        ),
      ),
    ),
  );
}

function select(input, shown, send) {
  const id = newId(input.name);
  const choices = input.default === null ? [null, ...input.choices] : input.choices;
  const box = h(
    "select",
    { id, onchange: () => send(choices[box.selectedIndex]) },
    choices.map((choice) =>
      h("option", { selected: choice === shown }, choice === null ? t("draw.automatic") : choiceLabel(input, choice)),
    ),
  );
  return wrap(input, id, box);
}

function textField(input, value, onChange) {
  const id = newId(input.name);
  const box = h("textarea", {
    id,
    dir: "auto",
    rows: 2,
    class: "text-box",
    value: value ?? input.default ?? "",
    oninput: () => onChange(box.value === (input.default ?? "") ? undefined : box.value),
  });
  return wrap(input, id, box);
}

/** The value is a seed that is locked, or undefined for a new one each time. */
function seedField(input, value, onChange) {
  const id = newId(input.name);
  const box = h("input", {
    id,
    // A number field would round seeds above 2^53.
    inputmode: "numeric",
    pattern: "[0-9]*",
    maxlength: 20,
    autocomplete: "off",
    placeholder: t("draw.seed.random"),
    value: value ?? "",
    oninput: () => {
      // The form refuses what is no seed; to leave it out would draw with another one.
      box.setAttribute("aria-invalid", String(!isSeed(box.value, input.max)));
      onChange(box.value || undefined);
      show();
    },
  });
  const lock = iconButton("unlock", t("draw.seed.lock"), {
    "aria-pressed": "false",
    onclick: () => {
      box.value = box.value ? "" : (lastSeed ?? "");
      box.setAttribute("aria-invalid", "false");
      onChange(box.value || undefined);
      show();
    },
  });
  const show = () => {
    const isLocked = box.value !== "";
    lock.setAttribute("aria-pressed", String(isLocked));
    lock.disabled = !isLocked && lastSeed === null;
    const label = t(isLocked ? "draw.seed.unlock" : "draw.seed.lock");
    lock.setAttribute("aria-label", label);
    lock.title = label;
    replaceChildren(lock, icon(isLocked ? "lock" : "dice"));
  };
  showLocks.add(show);
  show();
  return wrap(input, id, h("div", { class: "seed-row" }, box, lock));
}

let lastSeed = null;
let showLocks = new Set();

/** The seed of the last picture: what the lock takes. */
export function setLastSeed(seed) {
  lastSeed = seed === null ? null : String(seed);
  for (const show of showLocks) show();
}

/** Before the fields are made anew. */
export function forgetFields() {
  showLocks = new Set();
}

export function isSeed(text, max) {
  return /^\d*$/.test(text) && (text === "" || BigInt(text) <= BigInt(max ?? "18446744073709551615"));
}

function loraField(input, value, onChange) {
  const facts = new Map((input.loras ?? []).map((lora) => [lora.id, lora]));
  let chosen = (value ?? []).filter(({ name }) => input.choices.includes(name));
  const rows = h("ul", { class: "lora-rows" });
  const id = newId("lora");
  const add = h("select", {
    id,
    "aria-label": t("draw.lora.add"),
    onchange: () => {
      const name = add.value;
      if (!name) return;
      set([...chosen, { name, strength: facts.get(name)?.strength ?? 1 }]);
      rows.lastElementChild?.querySelector("input")?.focus();
    },
  });
  const set = (next) => {
    chosen = next;
    onChange(chosen.length ? chosen : undefined);
    show();
  };
  const show = () => {
    replaceChildren(rows, chosen.map(row));
    const free = input.choices.filter((name) => !chosen.some((one) => one.name === name));
    replaceChildren(
      add,
      h("option", { value: "" }, t("draw.lora.add")),
      free.map((name) => h("option", { value: name }, facts.get(name)?.title ?? name)),
    );
    add.hidden = free.length === 0;
  };
  const row = (lora) => {
    const title = facts.get(lora.name)?.title ?? lora.name;
    const output = h("output", {}, number(lora.strength));
    const slider = h("input", {
      type: "range",
      "aria-label": t("draw.lora.strength", { name: title }),
      min: Math.max(input.min ?? -2, -2),
      max: Math.min(input.max ?? 2, 2),
      step: 0.05,
      value: lora.strength,
      oninput: () => {
        lora.strength = Number(slider.value);
        output.textContent = number(lora.strength);
        onChange(chosen.map((one) => ({ ...one })));
      },
    });
    const remove = () => {
      set(chosen.filter((one) => one !== lora));
      add.focus();
    };
    return h(
      "li",
      {},
      h("span", { class: "lora-name", dir: "auto" }, title),
      iconButton("close", t("draw.lora.remove", { name: title }), { class: "icon-button small", onclick: remove }),
      slider,
      output,
    );
  };
  show();
  return h("div", { class: "field", dataset: { name: input.name } }, h("label", { for: id }, labelOf(input)), rows, add);
}

/** An image beside those that are edited, such as the one that a ControlNet follows. The value is a data: URL. */
function imageField(input, value, onChange) {
  if (input.name === "image" || input.name === "markup") return null; // the slot for images has them
  const id = newId(input.name);
  const preview = h("img", { class: "image-thumbnail", alt: "", hidden: true });
  const remove = iconButton("close", t("draw.image.remove"), { class: "icon-button small", hidden: true, onclick: () => set(undefined) });
  const note = h("p", { class: "hint", role: "status", hidden: true });
  const box = h("input", {
    type: "file",
    id,
    accept: "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/avif,image/heic,.heic,.heif",
    onchange: async () => {
      if (!box.files[0]) return;
      const { url, text, isUsable } = await picked(box.files[0]);
      set(url);
      note.textContent = text;
      note.hidden = !text;
      note.className = isUsable ? "hint" : "field-error";
    },
  });
  const set = (next) => {
    preview.hidden = remove.hidden = !next;
    note.hidden = true;
    if (next) preview.src = next;
    else box.value = "";
    onChange(next);
  };
  if (value) set(value);
  return wrap(input, id, h("div", { class: "image-row" }, preview, box, remove), note);
}

async function picked(file) {
  try {
    const [{ readPicked }] = await Promise.all([import("../edit/picked_image.js"), addTexts("edit")]);
    return await readPicked(file);
  } catch {
    return { url: undefined, text: t("common.view_missing"), isUsable: false };
  }
}
