// Lists and texts that change in place, so that a button which somebody is about to press stays the same element.

/**
 * Keeps the children of `parent` in step with a list: a function `(items)` that calls `create(item)` for new ones, which
 * gives `{element, update(item)}`, and `update` for all. `keyOf(item)` is what makes an item the same as before.
 */
export function keyedList(parent, keyOf, create) {
  const entries = new Map();
  return (items) => {
    const keys = new Set(items.map(keyOf));
    for (const [key, entry] of entries) {
      if (keys.has(key)) continue;
      entry.element.remove();
      entries.delete(key);
    }
    let place = parent.firstElementChild;
    for (const item of items) {
      const key = keyOf(item);
      let entry = entries.get(key);
      if (!entry) {
        entry = create(item);
        entries.set(key, entry);
      }
      entry.update(item);
      if (entry.element === place) place = place.nextElementSibling;
      else parent.insertBefore(entry.element, place);
    }
  };
}

/** Sets a text if it is another one; hides the element if there is none. */
export function setText(element, text) {
  const value = text ?? "";
  if (element.textContent !== value) element.textContent = value;
  element.hidden = value === "";
}
