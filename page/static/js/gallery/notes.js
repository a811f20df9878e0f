// Settings, and what was adjusted or ignored of them, as texts.

export function settingText(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value) && value.every((each) => each && typeof each === "object" && "name" in each)) {
    return value.map(({ name, strength }) => (strength === undefined ? name : `${name} (${strength})`)).join(", ");
  }
  return JSON.stringify(value);
}

/** A note on what was adjusted or ignored ({field, asked, done, why}) as a text. */
export function noteText({ field, asked, done, why }) {
  const values = done === undefined ? settingText(asked) : `${settingText(asked)} → ${settingText(done)}`;
  return [`${field}: ${values}`, why].filter(Boolean).join(". ");
}
