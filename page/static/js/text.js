// Texts in the reader's language, and numbers, sizes and times as that language writes them.

import { setting } from "./store.js";

const FILES = new URL("../texts/", import.meta.url);
export const LANGUAGES = { en: "English", de: "Deutsch" };

/** The chosen language, or null for the browser's. */
export const chosenLanguage = setting("language", null);
export let language = "en";
const texts = {};
const formats = {};
const loading = new Map();

/** Loads the texts of the frame and of Draw; the server's guess is used unless another language was chosen. */
export async function loadTexts() {
  const known = [chosenLanguage.get(), document.documentElement.lang].filter((code) => Object.hasOwn(LANGUAGES, code));
  language = known[0] ?? "en";
  await addTexts("first");
  document.documentElement.lang = language;
}

/** Loads the texts of a view or part once; waits for them, so that nothing appears without. */
export function addTexts(name) {
  if (!loading.has(name)) {
    const loaded = read(name);
    loading.set(name, loaded);
    loaded.catch(() => loading.delete(name));
  }
  return loading.get(name);
}

async function read(name) {
  const response = await fetch(new URL(`${language}/${name}.json`, FILES));
  if (!response.ok) throw new Error(name);
  Object.assign(texts, await response.json());
}

/** The text of `key`, with `{name}` replaced. `{count|one|many}` chooses by the number `count`. */
export function t(key, values = {}) {
  const text = texts[key];
  if (text === undefined) {
    console.error(`no text ${key}`);
    return key;
  }
  return text.replace(/\{(\w+)(?:\|([^|{}]*)\|([^|{}]*))?\}/g, (whole, name, one, many) => {
    const value = values[name];
    if (value === undefined) return whole;
    if (one !== undefined) return (Number(value) === 1 ? one : many).replaceAll("#", number(value));
    return typeof value === "number" ? number(value) : String(value);
  });
}

/** Whether there is a text for `key`, for those made from codes of the server. */
export function hasText(key) {
  return key in texts;
}

/** Loads the texts of the server's error codes. Its own messages are English. */
export function addErrorTexts() {
  return language === "en" ? Promise.resolve() : addTexts("errors");
}

/**
 * What `error` ({code, message, param, details}) says, in the reader's language if addErrorTexts() has found a text for its
 * code whose values are known; else the message of the server.
 */
export function messageOf({ code, message, param, details }) {
  const key = `errors.${code}`;
  const text = hasText(key) ? t(key, { param: param ?? undefined, ...details }) : "";
  return text && !/\{\w+\}/.test(text) ? text : message;
}

/** What a request or drawing waits for, in the reader's language where the server's code for it is known; null if nothing. */
export function waitsFor({ waits_for: text, reason }) {
  const key = `draw.waits.${reason?.code}`;
  const names = reason?.names ? `: ${reason.names}` : "";
  return reason && hasText(key) ? t(key, { ...reason, names }) : (text ?? null);
}

/** Writes the texts of elements with data-t, data-t-label and data-t-title below `parent`. */
export function translate(parent = document) {
  for (const element of parent.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of parent.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", t(element.dataset.tLabel));
}

/** The formatter `name`, which `create` makes once. */
export function format(name, create) {
  return (formats[name] ??= create());
}

export function number(value, digits = 2) {
  return format(`number${digits}`, () => new Intl.NumberFormat(language, { maximumFractionDigits: digits })).format(value);
}

/** "4.3 GB" of 10^9 bytes each. */
export function bytes(value) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  const power = value > 0 ? Math.min(4, Math.floor(Math.log10(value) / 3)) : 0;
  const options = { style: "unit", unit: units[power], maximumFractionDigits: power > 2 ? 1 : 0 };
  return format(`bytes${power}`, () => new Intl.NumberFormat(language, options)).format(value / 1000 ** power);
}

export function gigabytes(value) {
  return bytes(value * 1e9);
}

/** "0.8 s", "12 s", "3 min 20 s", "1 h 5 min". */
export function seconds(value) {
  const unit = (amount, name, digits = 0) =>
    format(`${name}${digits}`, () => {
      const options = { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: digits };
      return new Intl.NumberFormat(language, options);
    }).format(amount);
  if (value < 10) return unit(value, "second", 1);
  const whole = Math.round(value);
  if (whole < 60) return unit(whole, "second");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 ? `${unit(minutes, "minute")} ${unit(whole % 60, "second")}` : unit(minutes, "minute");
  const hours = Math.floor(minutes / 60);
  return minutes % 60 ? `${unit(hours, "hour")} ${unit(minutes % 60, "minute")}` : unit(hours, "hour");
}

export function percent(share) {
  return format("percent", () => new Intl.NumberFormat(language, { style: "percent" })).format(share);
}
