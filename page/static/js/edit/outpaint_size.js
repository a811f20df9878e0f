// The arithmetic of extending an image: shapes, and the limits of a model.

/** "512x768" as {width, height}. */
export function parseSize(text) {
  const [width, height] = text.split("x").map(Number);
  return { width, height };
}

/** The sides that give `image` the shape `across`:`down`, half on each side; nothing is cut off. */
export function sidesForRatio({ width, height }, [across, down]) {
  const ratio = across / down;
  const extraWidth = Math.max(0, Math.round(height * ratio) - width);
  const extraHeight = extraWidth ? 0 : Math.max(0, Math.round(width / ratio) - height);
  const left = Math.floor(extraWidth / 2);
  const top = Math.floor(extraHeight / 2);
  return { left, top, right: extraWidth - left, bottom: extraHeight - top };
}

/** Why a model with the limits `rule` ({min, max, maxPixels}) does not draw this size: {code, values}, or null. */
export function sizeProblem({ width, height }, { min, max, maxPixels }) {
  const values = { width, height, max_width: max.width, max_height: max.height };
  if (width > max.width || height > max.height) return { code: "too_large", values };
  if (width * height > maxPixels) {
    return { code: "too_many_pixels", values: { ...values, max: (maxPixels / 1e6).toFixed(1) } };
  }
  if (width < min.width || height < min.height) {
    return { code: "too_small", values: { ...values, min_width: min.width, min_height: min.height } };
  }
  return null;
}

/** The size of the image at which it fits with its sides, scaled together; null if it need not or cannot be smaller. */
export function fittingIn(image, sides, { max, maxPixels }) {
  const width = image.width + sides.left + sides.right;
  const height = image.height + sides.top + sides.bottom;
  const scale = Math.min(max.width / width, max.height / height, Math.sqrt(maxPixels / (width * height)));
  if (scale >= 1) return null;
  const small = { width: Math.floor(image.width * scale), height: Math.floor(image.height * scale) };
  return small.width >= 16 && small.height >= 16 ? small : null;
}
