// The body of POST /v1/images/edits.

/**
 * `fields` of a request and what `<easel-edit-panel>.read()` gives, as a form. Numbers and booleans become text; lists and
 * objects JSON.
 */
export function editForm(fields, { images, mask, outpaint }) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, ...(outpaint ? { outpaint } : {}) })) {
    if (value === null || value === undefined) continue;
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  const several = images.length > 1;
  for (const [index, { blob, name }] of images.entries()) {
    form.append(several ? `image[${index}]` : "image", blob, name);
  }
  if (mask) form.append("mask", mask, "mask.png");
  return form;
}
