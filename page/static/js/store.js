// Values that can be watched, and settings that the browser keeps. A full or forbidden storage loses the setting, nothing
// else.

/** Before each name: several Easels can be below different paths of one host, and share its storage. */
const PATH = new URL("../../..", import.meta.url).pathname;
const BEGINNING = PATH === "/" ? "easel." : `easel:${PATH}.`;

/** A value with `get()`, `set(value)` and `subscribe(callback)`, which returns the function that ends it. */
export function observable(value) {
  const callbacks = new Set();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const callback of [...callbacks]) callback(value);
    },
    subscribe(callback) {
      callbacks.add(callback);
      return () => callbacks.delete(callback);
    },
  };
}

/** Reads what was kept under `name`; `fallback` if there is nothing or it cannot be read. */
export function load(name, fallback, storage = "localStorage") {
  try {
    const text = window[storage].getItem(`${BEGINNING}${name}`);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Keeps `value` (JSON) under `name`; null removes it. Returns whether it could be kept. */
export function save(name, value, storage = "localStorage") {
  try {
    if (value === null) window[storage].removeItem(`${BEGINNING}${name}`);
    else window[storage].setItem(`${BEGINNING}${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** An observable that is kept. */
export function setting(name, fallback) {
  const value = observable(load(name, fallback));
  value.subscribe((next) => save(name, next));
  return value;
}
