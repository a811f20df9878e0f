// A control image that was picked for a field of the form: read, made smaller where needed, as a data: URL.

import { t } from "../text.js";
import { ImageProblem, readImage, release } from "./image_file.js";

/** The image in `file`: {url: a data: URL or undefined, text: what was changed or why it cannot be used, isUsable}. */
export async function readPicked(file) {
  try {
    const image = await readImage(file, file.name);
    release(image);
    const text = image.notes.map(({ code, values }) => t(`edit.note.${code}`, values)).join("; ");
    return { url: await dataUrl(image.blob), text, isUsable: true };
  } catch (error) {
    const code = error instanceof ImageProblem ? error.code : "broken";
    return { url: undefined, text: t(`edit.problem.${code}`, { name: file.name }), isUsable: false };
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
