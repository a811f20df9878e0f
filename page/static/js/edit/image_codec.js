// Decodes, scales and encodes pictures. Runs in a worker where the browser can, because scaling a large photo takes
// seconds; without one on the page's own thread.

const JPEG_QUALITY = 0.95;
const PREVIEW_SIDE = 320;

/**
 * The picture in `blob`, upright and scaled to `width` x `height`: {image, preview, isCompressed}. `image` is null with
 * `previewOnly`. A photo stays a JPEG, because its PNG would be many times as large; all else (`lossless`) becomes a PNG,
 * or a WebP if that has more than `maxBytes`. Rejects if the browser cannot decode it.
 */
export async function convert({ blob, width, height, lossless = true, previewOnly = false, maxBytes = Infinity }) {
  const target = previewOnly ? previewSize({ width, height }) : { width, height };
  let bitmap = await decoded(blob, target);
  try {
    if (previewOnly) return { image: null, preview: await encoded(bitmap, "image/webp"), isCompressed: false };
    let image = await encoded(bitmap, lossless ? "image/png" : "image/jpeg");
    const isCompressed = image.size > maxBytes;
    if (isCompressed) image = await encoded(bitmap, "image/webp");
    const small = await decoded(bitmap, previewSize(bitmap));
    bitmap.close();
    bitmap = small;
    return { image, preview: await encoded(bitmap, "image/webp"), isCompressed };
  } finally {
    bitmap.close();
  }
}

/** A mask as the API wants it: a PNG, transparent where `pixels` (a byte for each) has 255. */
export async function encodeMask({ pixels, width, height }) {
  const image = new ImageData(width, height);
  for (let index = 0; index < pixels.length; index += 1) image.data[index * 4 + 3] = 255 - pixels[index];
  const canvas = newCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return toBlob(canvas, "image/png");
}

/** Scales while it decodes, so that a large photo is not held twice at its full size. */
function decoded(source, { width, height }) {
  const options = { resizeWidth: width, resizeHeight: height, resizeQuality: "high" };
  return createImageBitmap(source, source instanceof Blob ? { ...options, imageOrientation: "from-image" } : options);
}

function encoded(bitmap, type) {
  const canvas = newCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return toBlob(canvas, type);
}

function previewSize({ width, height }) {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

function newCanvas(width, height) {
  if (typeof OffscreenCanvas === "function") return new OffscreenCanvas(width, height);
  return Object.assign(document.createElement("canvas"), { width, height });
}

async function toBlob(canvas, type) {
  const blob = canvas.convertToBlob
    ? await canvas.convertToBlob({ type, quality: JPEG_QUALITY })
    : await new Promise((resolve) => canvas.toBlob(resolve, type, JPEG_QUALITY));
  if (!blob) throw new Error("the picture could not be encoded");
  return blob;
}
