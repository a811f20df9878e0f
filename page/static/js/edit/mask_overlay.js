// Shows a mask over its image, at the resolution of the screen: only what is visible is computed, and only where it changed.

const STRIPE = 6;
const LIGHT = 0.46;
const DARK = 0.66;

/**
 * Draw `buffer` onto `canvas`, whose pixels are `ratio` per CSS pixel, as `viewport` places it. `colour`: [r, g, b].
 * `box`: the part of the mask that changed, in its own pixels; without one all is drawn.
 */
export function drawMask(canvas, buffer, viewport, ratio, colour, box = null) {
  const context = canvas.getContext("2d");
  const area = visible(canvas, viewport, ratio, box ?? buffer.box);
  if (!box) context.clearRect(0, 0, canvas.width, canvas.height);
  if (!area) return;
  const { left, top, right, bottom } = area;
  const image = context.createImageData(right - left, bottom - top);
  const pixels = new Uint32Array(image.data.buffer);
  // A screen pixel that covers several of the mask is the average of four, so that thin strokes do not vanish.
  const samples = viewport.scale * ratio < 0.67 ? [0.25, 0.75] : [0.5];
  const rows = places(top, bottom, samples, (at) => (at / ratio - viewport.y) / viewport.scale, buffer.height);
  const columns = places(left, right, samples, (at) => (at / ratio - viewport.x) / viewport.scale, buffer.width);
  const count = samples.length;
  const tint = rgbWord(colour);
  const stripe = STRIPE * ratio;
  let at = 0;
  for (let y = 0; y < image.height; y += 1) {
    for (let x = 0; x < image.width; x += 1, at += 1) {
      let level = 0;
      for (let j = y * count; j < (y + 1) * count; j += 1) {
        if (rows[j] < 0) continue;
        for (let i = x * count; i < (x + 1) * count; i += 1) {
          if (columns[i] >= 0) level += buffer.pixels[rows[j] * buffer.width + columns[i]];
        }
      }
      if (!level) continue;
      const strength = ((x + left + y + top) / stripe) & 1 ? DARK : LIGHT;
      pixels[at] = tint | (Math.round((level / (count * count)) * strength) << 24);
    }
  }
  context.putImageData(image, left, top);
}

/** A colour of CSS as [r, g, b]. */
export function rgbOf(colour) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

/** `box` of the mask in pixels of the canvas, as far as it is visible, or null. */
function visible(canvas, viewport, ratio, box) {
  const from = viewport.toScreen(box.left, box.top);
  const to = viewport.toScreen(box.right, box.bottom);
  const area = {
    left: Math.max(0, Math.floor(from.x * ratio) - 1),
    top: Math.max(0, Math.floor(from.y * ratio) - 1),
    right: Math.min(canvas.width, Math.ceil(to.x * ratio) + 1),
    bottom: Math.min(canvas.height, Math.ceil(to.y * ratio) + 1),
  };
  return area.left < area.right && area.top < area.bottom ? area : null;
}

/** For each canvas pixel from `first` to `end`, and each sample in it: the mask's row or column, -1 outside the mask. */
function places(first, end, samples, toMask, limit) {
  const found = new Int32Array((end - first) * samples.length);
  let index = 0;
  for (let at = first; at < end; at += 1) {
    for (const sample of samples) {
      const place = Math.floor(toMask(at + sample));
      found[index] = place >= 0 && place < limit ? place : -1;
      index += 1;
    }
  }
  return found;
}

/** A pixel of ImageData without its alpha, as a little-endian word. */
function rgbWord([red, green, blue]) {
  return red | (green << 8) | (blue << 16);
}
