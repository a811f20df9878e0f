// Sizes of pictures: which ones a model draws for a ratio. Pure.

export const RATIOS = ["1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16"];

/** {width, height} of "WxH", or null. */
export function parseSize(text) {
  const match = /^\s*(\d{1,5})\s*[x×*]\s*(\d{1,5})\s*$/i.exec(text ?? "");
  return match ? { width: Number(match[1]), height: Number(match[2]) } : null;
}

export function formatSize({ width, height }) {
  return `${width}x${height}`;
}

/** The limits of an input of type "size" as numbers. */
export function limitsOf(input) {
  const { min, max, multiple_of: multiple = 1, max_pixels: maxPixels } = input;
  return { min: parseSize(min), max: parseSize(max), multiple: multiple || 1, maxPixels: maxPixels ?? Infinity };
}

/** The sizes to offer: [{ratio, size}], one for each ratio that the model can draw, suggested ones first choice. */
export function choicesOf(input) {
  const suggested = (input.choices ?? []).map(parseSize).filter(Boolean);
  const base = parseSize(input.default) ?? suggested[0] ?? { width: 1024, height: 1024 };
  const choices = RATIOS.map((ratio) => {
    const [across, down] = ratio.split(":").map(Number);
    const near = suggested.filter((size) => isNear(size, across / down));
    const size = closest(near, base.width * base.height) ?? fit(across / down, base.width * base.height, limitsOf(input));
    return size && { ratio, size };
  });
  return choices.filter(Boolean);
}

/** The ratio of RATIOS that `size` has, or null. */
export function ratioOf(size) {
  return RATIOS.find((ratio) => {
    const [across, down] = ratio.split(":").map(Number);
    return isNear(size, across / down);
  }) ?? null;
}

function isNear({ width, height }, ratio) {
  return Math.abs(Math.log(width / height / ratio)) < 0.05;
}

function closest(sizes, area) {
  const distance = ({ width, height }) => Math.abs(width * height - area);
  return [...sizes].sort((one, other) => distance(one) - distance(other))[0] ?? null;
}

/** The size of `ratio` with about `area` pixels within `limits`, or null if the limits do not allow the ratio. */
export function fit(ratio, area, { min, max, multiple, maxPixels }) {
  const wanted = Math.min(area, maxPixels);
  let width = Math.sqrt(wanted * ratio);
  let height = width / ratio;
  const scale = Math.min(1, max.width / width, max.height / height);
  const grow = Math.max(1, min.width / (width * scale), min.height / (height * scale));
  const down = (value) => Math.round(value / multiple) * multiple;
  width = down(width * scale * grow);
  height = down(height * scale * grow);
  while (width * height > maxPixels) {
    if (width > height) width -= multiple;
    else height -= multiple;
  }
  const isAllowed = problemOf({ width, height }, { min, max, multiple, maxPixels }) === null;
  return isAllowed && isNear({ width, height }, ratio) ? { width, height } : null;
}

/** Why a size is not possible: "small", "large", "multiple" (it will be rounded), "pixels", or null. */
export function problemOf({ width, height }, { min, max, multiple, maxPixels }) {
  if (!(width >= min.width && height >= min.height)) return "small";
  if (width > max.width || height > max.height) return "large";
  if (width * height > maxPixels) return "pixels";
  return width % multiple || height % multiple ? "multiple" : null;
}
