// What can be done with stored images, wherever they are shown. Knows the API; asks and tells nobody.

import { stateOf, varies } from "../draw/models.js";
import { zip } from "./zip.js";

export const pathOf = (name) => `/api/images/${encodeURIComponent(name)}`;

export const pictureUrl = (api, image) => api.pictureUrl(image.name);

export const thumbnailUrl = (api, image) => api.thumbnailUrl(image.name);

/** Mark images as favourites, or not. The changed images; throws the first error. */
export function setFavourite(api, images, favourite) {
  return each(images, (image) => api.request(pathOf(image.name), { method: "PATCH", body: { favourite } }));
}

/** Delete images. `{names}` that are gone, also those that were gone before; `error`: the first one, if some are not. */
export async function deleteImages(api, images) {
  const names = [];
  let error = null;
  await each(images, async (image) => {
    try {
      await api.request(pathOf(image.name), { method: "DELETE" });
      names.push(image.name);
    } catch (failure) {
      if (failure.status === 404) names.push(image.name);
      else error ??= failure;
    }
  });
  return { names, error };
}

/** Save images to the reader's disk: one as it is, several in a ZIP file. */
export async function download(api, images) {
  const blobs = await each(images, async (image) => {
    const response = await fetch(pictureUrl(api, image), { credentials: "omit" });
    if (!response.ok) throw Object.assign(new Error(), { status: response.status });
    return response.blob();
  });
  if (images.length === 1) save(blobs[0], fileName(images[0]));
  else save(await zip(images.map((image, i) => ({ name: fileName(image), blob: blobs[i], at: image.created }))), "easel.zip");
}

/** A name that sorts by time and says what it is: 2026-11-27 16-03-12 sdxl 1234.png */
export function fileName(image) {
  const at = new Date(image.created * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join("-");
  const extension = image.name.split(".").pop();
  const model = (image.model ?? "image").replace(/[^\p{L}\p{N}._-]+/gu, "-");
  const when = image.created ? `${day} ${time}` : ""; // not known while the index cannot be read
  return `${when} ${model} ${image.seed ?? ""} ${image.name.slice(0, 4)}.${extension}`.replace(/ +/g, " ").trim();
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The results of `work` for all items, four at a time: a browser has six connections to a host. */
async function each(items, work) {
  const results = new Array(items.length);
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const index = next;
      next += 1;
      results[index] = await work(items[index]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(4, items.length) }, worker));
  return results;
}

/** Whether the model that drew `image` can draw variations now. */
export async function mayVary({ api, live }, { model }) {
  if (!model || !live.may("draw")) return false;
  try {
    const document = await api.request(`v1/models/${encodeURI(model)}`);
    return varies(document) && stateOf(document, live.latest("status")).kind === "ready";
  } catch {
    return false; // such as a model that is not in the catalogue any more
  }
}

/** Open Draw with an image: "settings" (all but its seed), "same-seed", "edit", or "vary", which draws at once. */
export function handOver(context, image, mode) {
  const { seed, ...settings } = { ...image.settings };
  const source = { name: image.name, url: pictureUrl(context.api, image), width: image.width, height: image.height };
  const model = settings.model ?? image.model;
  const fields = { ...(model ? { model } : {}), ...(image.prompt === null ? {} : { prompt: image.prompt }), ...settings };
  context.navigate("draw", {
    mode,
    settings: mode === "same-seed" ? { ...fields, seed: image.seed ?? seed } : fields,
    images: mode === "edit" || mode === "vary" ? [source] : [],
  });
}
