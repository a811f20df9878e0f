// The form: prompt, model, images, and exactly the fields that the model declares for the task.

import { h, icon, replaceChildren } from "../dom.js";
import { t } from "../text.js";
import { field, forgetFields, isSeed } from "./fields.js";
import { inputsFor } from "./models.js";
import { limitsOf, parseSize, problemOf } from "./sizes.js";

const LONGEST_PROMPT = 32_000;
const SHOWN_FROM = 30_000;
const HANDLED = new Set(["prompt", "image", "mask", "outpaint", "markup"]);
/** Kept when another model is chosen; the others belong to the model. */
const COMMON = new Set(["n", "seed", "negative_prompt", "background", "output_format", "output_compression"]);
const ORDER = ["size", "n", "strength", "quality", "steps", "cfg", "guidance", "seed", "negative_prompt", "lora"];

/**
 * The form. `state` is {model, prompt, values: {model id: {field: value}}}, kept by `onChange(state)`.
 * {element, setDetail(detail), request(), problem(), setBusy(bool), apply(settings), focus()}.
 */
export function createForm({ state, picker, slot, mayDraw, onChange, onDraw, onStop }) {
  let detail = null;
  let task = null;
  let inputs = [];
  let decided = [];
  let isBusy = false;
  let isAsked = false; // the button was pressed before the model was known

  const counter = h("p", { class: "hint prompt-counter", id: "prompt-counter" });
  const prompt = h("textarea", {
    id: "prompt",
    class: "prompt",
    dir: "auto",
    rows: 4,
    placeholder: t("draw.prompt_hint"),
    "aria-describedby": "prompt-counter",
    enterkeyhint: "enter",
    value: state.prompt,
    oninput: () => {
      state.prompt = prompt.value;
      showCounter();
      showButton();
      onChange();
    },
  });
  const promptField = h("div", { class: "field prompt-field" }, h("label", { for: "prompt", class: "visually-hidden" }, t("draw.prompt")), prompt, counter);
  const problem = h("p", { class: "field-error form-problem", role: "status" });
  const button = h("button", { type: "submit", class: "button primary draw-button" });
  const basic = h("div", { class: "fields" });
  const advanced = h("div", { class: "fields" });
  const more = h("details", { class: "advanced", open: state.advanced ?? false, ontoggle: () => ((state.advanced = more.open), onChange()) }, h("summary", {}, icon("chevronRight", { size: 16 }), t("draw.advanced")), advanced);
  const element = h(
    "form",
    { class: "draw-form panel", "aria-label": t("common.title_draw"), novalidate: true, onsubmit: (event) => (event.preventDefault(), submit()), onkeydown },
    promptField,
    slot.element,
    h("div", { class: "field" }, h("span", { class: "field-label", id: "model-label" }, t("draw.model.label")), picker.element),
    basic,
    more,
    h("div", { class: "draw-bar" }, problem, button),
  );

  function onkeydown(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!isBusy) submit();
    }
  }

  function submit() {
    if (isBusy) return onStop();
    // A number that the model does not allow becomes the nearest one that it does now, where it can be seen.
    const typed = document.activeElement;
    if (typed?.matches(".number-box")) {
      typed.blur();
      typed.focus();
    }
    const why = currentProblem();
    showProblem(why);
    isAsked = !isKnown();
    if (why === null) return onDraw();
    if (why === t("draw.problem.no_prompt")) prompt.focus();
    return undefined;
  }

  /** Whether the fields are those of the chosen model, and not of the one before. */
  function isKnown() {
    return detail !== null && detail.id === state.model;
  }

  function values() {
    return (state.values[detail?.id] ??= {});
  }

  function showFields() {
    forgetFields();
    const names = (each) => ORDER.indexOf(each.name) + 1 || ORDER.length + 1;
    const shown = inputs.filter(isOwn).sort((one, other) => names(one) - names(other));
    const make = (input) => {
      const made = field(input, values()[input.name], (value) => setValue(input, value));
      if (made) made.dataset.name = input.name;
      return made;
    };
    replaceChildren(basic, shown.filter((input) => !input.advanced).map(make));
    replaceChildren(advanced, shown.filter((input) => input.advanced).map(make));
    more.hidden = advanced.children.length === 0;
    const takesPrompt = inputs.some(({ name }) => name === "prompt");
    promptField.hidden = detail !== null && inputs.length > 0 && !takesPrompt;
    showUnused();
  }

  /** Whether a value of the input is chosen here, and not by the images or their tools. */
  function isOwn({ name }) {
    return !HANDLED.has(name) && !slot.decides.includes(name);
  }

  function setValue(input, value) {
    if (value === undefined) delete values()[input.name];
    else values()[input.name] = value;
    showUnused();
    showButton();
    onChange();
  }

  /** Fields that have no effect with the present values of others say so and cannot be used. */
  function showUnused() {
    for (const input of inputs) {
      const made = element.querySelector(`.fields [data-name="${CSS.escape(input.name)}"]`);
      if (made) made.classList.toggle("is-unused", isUnused(input));
      for (const control of made?.querySelectorAll("input, textarea, select") ?? []) control.disabled = isUnused(input);
    }
  }

  function valueOf(name) {
    const input = inputs.find((each) => each.name === name);
    return values()[name] ?? input?.default ?? null;
  }

  function isUnused(input) {
    const conditions = Object.entries(input.unused_when ?? {});
    return conditions.length > 0 && conditions.every(([name, value]) => (Array.isArray(value) ? value.includes(valueOf(name)) : valueOf(name) === value));
  }

  function currentProblem() {
    if (!mayDraw()) return t("draw.problem.needs_draw");
    if (!isKnown()) return t("draw.problem.no_model");
    if (inputs.some(({ name, required }) => name === "prompt" && required) && !state.prompt.trim()) return t("draw.problem.no_prompt");
    if (state.prompt.length > LONGEST_PROMPT) return t("draw.problem.long_prompt", { count: state.prompt.length, max: LONGEST_PROMPT });
    if (task !== "generate" && !slot.hasImages) return t("draw.problem.no_image");
    if (slot.problem) return slot.problem;
    const size = inputs.find((input) => input.type === "size" && isOwn(input));
    const wanted = size && parseSize(values().size);
    if (size && values().size && (!wanted || ![null, "multiple"].includes(problemOf(wanted, limitsOf(size))))) return t("draw.problem.size");
    const seed = inputs.find(({ type }) => type === "seed");
    if (seed && !isSeed(String(values().seed ?? ""), seed.max)) return t("draw.problem.seed");
    return null;
  }

  function showProblem(text) {
    problem.textContent = text ?? "";
  }

  function showCounter() {
    const { length } = state.prompt;
    const isLong = length > LONGEST_PROMPT;
    counter.textContent = length >= SHOWN_FROM ? t("draw.prompt_counter", { count: length, max: LONGEST_PROMPT }) : "";
    counter.classList.toggle("is-bad", isLong);
    prompt.setAttribute("aria-invalid", String(isLong));
  }

  function showButton() {
    const kind = isBusy ? "stop" : "draw";
    if (button.dataset.kind !== kind) {
      button.dataset.kind = kind;
      replaceChildren(button, icon(isBusy ? "stop" : "draw"), t(isBusy ? "draw.stop" : "draw.draw"), isBusy ? null : h("kbd", { class: "key-hint", "aria-hidden": "true" }, t("draw.shortcut")));
    }
    if (problem.textContent && currentProblem() === null) showProblem(null);
  }

  /** The inputs anew: another model, or images were added or removed. */
  function setDetail(next) {
    detail = next;
    showInputs();
    if (isAsked) submit();
  }

  function showInputs() {
    if (!detail) return;
    const found = inputsFor(detail, slot.task);
    const isSame = found.task === task && found.inputs === inputs && String(decided) === String(slot.decides);
    ({ task, inputs } = found);
    decided = slot.decides;
    if (!isSame) showFields();
    showButton();
  }

  /** What belongs to every model goes along to the next one. */
  function carryOver(fromId, toId) {
    const from = state.values[fromId] ?? {};
    const to = (state.values[toId] ??= {});
    for (const name of COMMON) {
      if (from[name] === undefined) delete to[name];
      else to[name] = from[name];
    }
  }

  /** The fields that are sent, without those that are at their defaults or do not count. */
  function fields() {
    const sent = { model: detail.id };
    for (const input of inputs) {
      if (input.name === "prompt") sent.prompt = state.prompt;
      else if (isOwn(input) && values()[input.name] !== undefined && !isUnused(input)) sent[input.name] = values()[input.name];
    }
    return sent;
  }

  showCounter();
  showButton();
  return {
    element,
    onkeydown,
    setDetail,
    showInputs,
    carryOver,
    fields,
    input: (name) => inputs.find((each) => each.name === name) ?? null,
    valueOf,
    get task() {
      return task;
    },
    setBusy(busy) {
      isBusy = busy;
      showButton();
    },
    showProblem(text) {
      if (text) isAsked = false;
      showProblem(text);
    },
    setPrompt(text) {
      state.prompt = prompt.value = text;
      showCounter();
      showButton();
      onChange();
    },
    /** Settings of a request: those that the model knows for any task become the values. */
    apply(settings) {
      if (typeof settings.prompt === "string") state.prompt = prompt.value = settings.prompt;
      const known = new Map([...Object.values(detail.inputs ?? {}).flat(), ...inputs].map((input) => [input.name, input]));
      const next = {};
      for (const [name, value] of Object.entries(settings)) {
        const input = known.get(name);
        if (!input || HANDLED.has(name) || value === null || (value === input.default && inputs.includes(input))) continue;
        next[name] = input.type === "seed" ? String(value) : value;
      }
      state.values[detail.id] = next;
      showFields();
      showCounter();
      showButton();
      onChange();
    },
    setValue(name, value) {
      const input = inputs.find((each) => each.name === name);
      if (!input) return;
      setValue(input, value);
      showFields();
    },
    focusPrompt: () => prompt.focus(),
  };
}
