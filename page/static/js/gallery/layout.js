// Where each picture of the gallery lies: rows of one width in which every picture keeps its shape. Pure arithmetic, so
// that ten thousand pictures are laid out in a few milliseconds and only those on screen need an element.

const NARROWEST = 0.4;
const WIDEST = 3;
// A panorama alone would otherwise make a row of a few pixels, and a tower one that fills the screen.

/** Width divided by height, within limits; 1 if it is not known (an index that was rebuilt). */
export function shape(image) {
  const ratio = image.width && image.height ? image.width / image.height : 1;
  return Math.min(WIDEST, Math.max(NARROWEST, ratio));
}

/** The height that rows should have about in a gallery of this width, in CSS pixels. */
export function rowHeight(width) {
  if (width < 480) return 128;
  if (width < 900) return 168;
  return width < 1800 ? 216 : 260;
}

/**
 * Rows for `images` in a box of `width` pixels: `{rows, height}`, each row `{start, end, top, height, widths}`, with the
 * images from `start` up to but not including `end`.
 */
export function layOut(images, width, gap = 8, target = rowHeight(width)) {
  const rows = [];
  let start = 0;
  let sum = 0;
  let top = 0;
  for (let i = 0; i < images.length; i += 1) {
    sum += shape(images[i]);
    const count = i - start + 1;
    const height = (width - gap * (count - 1)) / sum;
    const isLast = i === images.length - 1;
    if (height > target * 1.15 && !isLast) continue;
    // The last row is not stretched: it keeps the usual height and ends where its pictures end.
    const used = Math.min(height, isLast ? target * 1.15 : height);
    const widths = [];
    for (let j = start; j <= i; j += 1) widths.push(shape(images[j]) * used);
    rows.push({ start, end: i + 1, top, height: used, widths });
    top += used + gap;
    start = i + 1;
    sum = 0;
  }
  return { rows, height: Math.max(0, top - gap) };
}

/** Index of the first row that ends below `y`; `rows.length` if none does. */
export function rowAt(rows, y) {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].top + rows[middle].height > y) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Index of the row that holds image `index`. */
export function rowOf(rows, index) {
  let low = 0;
  let high = rows.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].end > index) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The image in the row above (`step` -1) or below (1) whose middle is nearest to that of image `index`. */
export function neighbour(rows, index, step, gap = 8) {
  const row = rows[rowOf(rows, index)];
  const other = rows[rowOf(rows, index) + step];
  if (!row || !other) return index;
  const middle = middleOf(row, index - row.start, gap);
  let best = 0;
  for (let i = 1; i < other.widths.length; i += 1) {
    const isNearer = Math.abs(middleOf(other, i, gap) - middle) < Math.abs(middleOf(other, best, gap) - middle);
    if (isNearer) best = i;
  }
  return other.start + best;
}

function middleOf(row, place, gap) {
  let x = 0;
  for (let i = 0; i < place; i += 1) x += row.widths[i] + gap;
  return x + row.widths[place] / 2;
}
