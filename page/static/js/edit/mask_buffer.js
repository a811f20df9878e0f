// A mask as numbers: one byte per pixel of its image, 0 (kept) to 255 (drawn anew), with undo. Knows nothing of screens.
//
// The bytes are computed here and not by a canvas, because a canvas cannot take the maximum of two alphas: a soft stroke
// that crosses itself would harden.

/** Bytes of pixels that undo may keep. The oldest steps are forgotten first. */
const UNDO_BYTES = 96 << 20;
const UNDO_STEPS = 100;

export class MaskBuffer {
  constructor(width, height, pixels = new Uint8Array(width * height)) {
    this.width = width;
    this.height = height;
    this.pixels = pixels;
    /** What has been done and undone: {box, before, after} or {invert: true}. */
    this._done = [];
    this._undone = [];
    this._stroke = null;
    this._coverage = null;
  }

  get canUndo() {
    return this._done.length > 0;
  }

  get canRedo() {
    return this._undone.length > 0;
  }

  /** Whether no pixel is to be drawn anew. */
  get isEmpty() {
    return this.coverage === 0;
  }

  /** The share of the image that is masked, 0 to 1; soft pixels count in part. */
  get coverage() {
    if (this._coverage === null) {
      let sum = 0;
      for (let index = 0; index < this.pixels.length; index += 1) sum += this.pixels[index];
      this._coverage = sum / 255 / this.pixels.length;
    }
    return this._coverage;
  }

  // -- strokes ---------------------------------------------------------------------------------------------------

  /** Begin a stroke. `erase` takes away instead of adding; `softness` 0 to 1 is the part of the radius that fades. */
  begin({ erase = false, softness = 0 } = {}) {
    this.cancel();
    this._stroke = { erase, softness, last: null, box: null, base: null, cover: null };
  }

  /** Continue the stroke to (x, y) with this radius, in pixels of the image. Returns the box that changed, or null. */
  paint(x, y, radius) {
    const stroke = this._stroke;
    if (!stroke) return null;
    const point = { x, y, radius: Math.max(0.5, radius) };
    const from = stroke.last ?? point;
    // Points closer than a tenth of the radius are skipped: the next one draws the same capsule, in one pass.
    if (stroke.last && Math.hypot(x - from.x, y - from.y) < Math.max(0.5, point.radius / 10)) return null;
    stroke.last = point;
    const reach = Math.max(from.radius, point.radius) + 1;
    const box = clip(
      {
        left: Math.floor(Math.min(from.x, x) - reach),
        top: Math.floor(Math.min(from.y, y) - reach),
        right: Math.ceil(Math.max(from.x, x) + reach),
        bottom: Math.ceil(Math.max(from.y, y) + reach),
      },
      this.width,
      this.height,
    );
    if (!box) return null;
    this._coverage = null;
    this._grow(box);
    this._paintCapsule(from, point, box);
    return box;
  }

  /** End the stroke: it becomes one step that can be undone. */
  end() {
    const stroke = this._stroke;
    this._stroke = null;
    if (!stroke?.box) return;
    this._remember(stroke.box, stroke.base);
  }

  /** Take back the stroke that is being painted. Returns the box that changed, or null. */
  cancel() {
    const stroke = this._stroke;
    this._stroke = null;
    if (!stroke?.box) return null;
    this._write(stroke.box, stroke.base);
    return stroke.box;
  }

  // -- whole steps -----------------------------------------------------------------------------------------------

  /** Set every pixel of `box` ({left, top, right, bottom}; the whole mask without one) to `level`. Returns the box. */
  fill(level, box = this.box) {
    const area = clip(box, this.width, this.height);
    if (!area) return null;
    const before = this._read(area);
    this._coverage = null;
    for (let y = area.top; y < area.bottom; y += 1) {
      this.pixels.fill(level, y * this.width + area.left, y * this.width + area.right);
    }
    this._remember(area, before);
    return area;
  }

  invert() {
    this._invert();
    this._push({ invert: true, bytes: 0 });
    return this.box;
  }

  /** Undo the last step. Returns the box that changed, or null. */
  undo() {
    this.cancel();
    return this._replay(this._done, this._undone, "before");
  }

  redo() {
    this.cancel();
    return this._replay(this._undone, this._done, "after");
  }

  get box() {
    return { left: 0, top: 0, right: this.width, bottom: this.height };
  }

  /** The same mask for its image at another size. Its steps cannot be undone: they have the old size. */
  resized(width, height) {
    const pixels = new Uint8Array(width * height);
    for (let y = 0; y < height; y += 1) {
      const row = Math.min(this.height - 1, Math.floor(((y + 0.5) * this.height) / height)) * this.width;
      for (let x = 0; x < width; x += 1) {
        pixels[y * width + x] = this.pixels[row + Math.min(this.width - 1, Math.floor(((x + 0.5) * this.width) / width))];
      }
    }
    return new MaskBuffer(width, height, pixels);
  }

  // -- private ---------------------------------------------------------------------------------------------------

  /** The pixels of the capsule between two circles: how much of each one the stroke covers, joined to what was there. */
  _paintCapsule(from, to, box) {
    const { softness, erase, cover, base, box: whole } = this._stroke;
    const { pixels, width } = this;
    const dx = to.x - from.x;
    const dy = to.y - from.y;
    const length2 = dx * dx + dy * dy || 1;
    const stride = whole.right - whole.left;
    const grows = to.radius - from.radius;
    for (let y = box.top; y < box.bottom; y += 1) {
      const py = y + 0.5 - from.y;
      let at = (y - whole.top) * stride + (box.left - whole.left);
      for (let x = box.left; x < box.right; x += 1, at += 1) {
        if (cover[at] === 255) continue;
        const px = x + 0.5 - from.x;
        const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length2));
        const radius = from.radius + along * grows;
        const ox = px - along * dx;
        const oy = py - along * dy;
        const distance2 = ox * ox + oy * oy;
        if (distance2 >= (radius + 0.5) * (radius + 0.5)) continue;
        const level = Math.round(255 * falloff(Math.sqrt(distance2), radius, softness));
        if (level <= cover[at]) continue;
        cover[at] = level;
        const old = base[at];
        pixels[y * width + x] = erase ? Math.round((old * (255 - level)) / 255) : Math.max(old, level);
      }
    }
  }

  /** Make the stroke's box contain `box`, with what was there before it. Doubles, so that a long stroke copies little. */
  _grow(box) {
    const stroke = this._stroke;
    if (stroke.box && contains(stroke.box, box)) return;
    const old = stroke.box;
    const wanted = old ? union(old, box) : box;
    const spareX = old ? (wanted.right - wanted.left) >> 1 : 0;
    const spareY = old ? (wanted.bottom - wanted.top) >> 1 : 0;
    const grown = clip(
      {
        left: old && wanted.left < old.left ? wanted.left - spareX : wanted.left,
        top: old && wanted.top < old.top ? wanted.top - spareY : wanted.top,
        right: old && wanted.right > old.right ? wanted.right + spareX : wanted.right,
        bottom: old && wanted.bottom > old.bottom ? wanted.bottom + spareY : wanted.bottom,
      },
      this.width,
      this.height,
    );
    // Outside the old box the stroke has changed nothing yet.
    const base = this._read(grown);
    const cover = new Uint8Array(base.length);
    if (old) {
      const stride = grown.right - grown.left;
      const width = old.right - old.left;
      for (let y = old.top; y < old.bottom; y += 1) {
        const row = (y - old.top) * width;
        const at = (y - grown.top) * stride + (old.left - grown.left);
        base.set(stroke.base.subarray(row, row + width), at);
        cover.set(stroke.cover.subarray(row, row + width), at);
      }
    }
    Object.assign(stroke, { box: grown, base, cover });
  }

  _read({ left, top, right, bottom }) {
    const width = right - left;
    const copy = new Uint8Array(width * (bottom - top));
    for (let y = top; y < bottom; y += 1) {
      copy.set(this.pixels.subarray(y * this.width + left, y * this.width + right), (y - top) * width);
    }
    return copy;
  }

  _write({ left, top, right, bottom }, copy) {
    this._coverage = null;
    const width = right - left;
    for (let y = top; y < bottom; y += 1) {
      this.pixels.set(copy.subarray((y - top) * width, (y - top + 1) * width), y * this.width + left);
    }
  }

  _invert() {
    this._coverage = null;
    const { buffer, length } = this.pixels;
    const words = new Uint32Array(buffer, 0, length >> 2); // four pixels at a time
    for (let index = 0; index < words.length; index += 1) words[index] = ~words[index];
    for (let index = words.length * 4; index < length; index += 1) this.pixels[index] = 255 - this.pixels[index];
  }

  _remember(box, before) {
    const after = this._read(box);
    if (isSame(before, after)) return;
    this._push({ box, before, after, bytes: before.length * 2 });
  }

  _push(step) {
    this._undone = [];
    this._done.push(step);
    let bytes = this._done.reduce((sum, { bytes: size }) => sum + size, 0);
    while (this._done.length > 1 && (bytes > UNDO_BYTES || this._done.length > UNDO_STEPS)) {
      bytes -= this._done.shift().bytes;
    }
  }

  _replay(from, to, which) {
    const step = from.pop();
    if (!step) return null;
    to.push(step);
    if (step.invert) {
      this._invert();
      return this.box;
    }
    this._write(step.box, step[which]);
    return step.box;
  }
}

/** How much a brush covers at this distance from its middle, 0 to 1. A hard brush has an edge of one pixel. */
function falloff(distance, radius, softness) {
  const width = Math.max(1, radius * softness);
  const inside = Math.min(1, Math.max(0, (radius + 0.5 - distance) / width));
  return softness ? inside * inside * (3 - 2 * inside) : inside;
}

function isSame(before, after) {
  for (let index = 0; index < before.length; index += 1) if (before[index] !== after[index]) return false;
  return true;
}

function clip({ left, top, right, bottom }, width, height) {
  const box = {
    left: Math.max(0, Math.floor(left)),
    top: Math.max(0, Math.floor(top)),
    right: Math.min(width, Math.ceil(right)),
    bottom: Math.min(height, Math.ceil(bottom)),
  };
  return box.left < box.right && box.top < box.bottom ? box : null;
}

function union(a, b) {
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
  };
}

function contains(outer, inner) {
  return (
    outer.left <= inner.left && outer.top <= inner.top && outer.right >= inner.right && outer.bottom >= inner.bottom
  );
}
