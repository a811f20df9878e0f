// Reads what people drop, paste or pick into an image that the API takes: upright, of a size that this browser and the
// server can hold, and always the bytes of the file itself if nothing has to be changed.

import { ACCEPTED, HEAD_BYTES, fileKind } from "./file_kind.js";
import { run } from "./image_tasks.js";

/** The most pixels that a canvas of Safari on a phone can have. No model draws more: 3840 pixels a side are the limit. */
export const MAX_PIXELS = 4096 * 4096;
/** What the server allows for one side. */
export const MAX_SIDE = 16_384;
/** A larger file is encoded again, so that several of them fit into one request (128 MB by default). */
export const MAX_FILE_BYTES = 24_000_000;

const EXTENSIONS = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };

/** Why a file cannot be used. `code`: empty, heic, svg, tiff, pdf, video, not_image or broken. */
export class ImageProblem extends Error {
  constructor(code) {
    super(code);
    this.code = code;
  }
}

/**
 * Read `blob` as an image: {blob, name, url, preview, width, height, notes}. `url` and `preview` are object URLs of the
 * image and of a small still picture of it (revoke them with `release`); `notes` are what was changed, as
 * {code: "scaled"|"first_frame"|"converted"|"compressed", values}. Throws ImageProblem.
 */
export async function readImage(blob, name = "") {
  if (!blob.size) throw new ImageProblem("empty");
  const { kind, animated } = fileKind(new Uint8Array(await blob.slice(0, HEAD_BYTES).arrayBuffer()));
  if (["svg", "pdf", "video"].includes(kind)) throw new ImageProblem(kind);
  const size = await naturalSize(blob, kind);
  const target = fittingSize(size);
  const notes = [];
  if (target.width !== size.width) notes.push(scaledNote(size, target));
  if (animated) notes.push({ code: "first_frame", values: {} });
  if (!ACCEPTED.has(kind)) notes.push({ code: "converted", values: { kind: kind.toUpperCase() } });
  const isKept = !notes.length && blob.size <= MAX_FILE_BYTES;
  const isPhoto = kind === "jpeg" || kind === "heic";
  const made = await converted(blob, target, { lossless: !isPhoto, previewOnly: isKept, maxBytes: MAX_FILE_BYTES });
  if (made.isCompressed || (!isKept && !notes.length)) notes.push({ code: "compressed", values: {} });
  return imageOf(made.image ?? blob, made.preview, name, target, notes);
}

/** `image` at a smaller size, as a new one. Throws ImageProblem. */
export async function scaleImage(image, size) {
  const { image: blob, preview } = await converted(image.blob, size, { lossless: image.blob.type !== "image/jpeg" });
  const notes = [...image.notes.filter(({ code }) => code !== "scaled"), scaledNote(image, size)];
  return { ...image, ...imageOf(blob, preview, image.name, size, notes) };
}

export function release(image) {
  URL.revokeObjectURL(image.url);
  URL.revokeObjectURL(image.preview);
}

export function sizeText({ width, height }) {
  return `${width}×${height}`;
}

/** The largest size of the same shape within the limits. */
export function fittingSize({ width, height }) {
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)), MAX_SIDE / Math.max(width, height));
  if (scale === 1) return { width, height };
  return { width: Math.max(1, Math.floor(width * scale)), height: Math.max(1, Math.floor(height * scale)) };
}

function imageOf(blob, preview, name, { width, height }, notes) {
  return {
    blob,
    name: fileName(name, blob.type),
    url: URL.createObjectURL(blob),
    preview: URL.createObjectURL(preview),
    width,
    height,
    notes,
  };
}

function scaledNote(from, to) {
  return { code: "scaled", values: { from: sizeText(from), to: sizeText(to) } };
}

async function converted(blob, { width, height }, options) {
  try {
    return await run("convert", { blob, width, height, ...options });
  } catch {
    throw new ImageProblem("broken");
  }
}

/** The size as the image is shown, that is after its EXIF rotation. An `<img>` knows it without decoding the pixels. */
async function naturalSize(blob, kind) {
  const url = URL.createObjectURL(blob);
  try {
    const image = new Image();
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(problemOf(kind));
      image.src = url;
    });
    if (!image.naturalWidth || !image.naturalHeight) throw problemOf(kind);
    return { width: image.naturalWidth, height: image.naturalHeight };
  } finally {
    URL.revokeObjectURL(url);
  }
}

function problemOf(kind) {
  if (ACCEPTED.has(kind)) return new ImageProblem("broken");
  return new ImageProblem(kind === "unknown" ? "not_image" : kind);
}

/** The name with the extension of what the file is now. */
function fileName(name, type) {
  const extension = EXTENSIONS[type];
  if (!extension) return name || "image";
  return `${name.replace(/\.[^.]*$/, "") || "image"}.${extension}`;
}
