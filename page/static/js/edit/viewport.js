// Where an image lies on the screen: zoom and place, as numbers. Screen points are CSS pixels from the corner of the
// viewing area.

const MARGIN = 12;
const MAX_SCALE = 16;

export class Viewport {
  constructor(imageWidth, imageHeight) {
    this.imageWidth = imageWidth;
    this.imageHeight = imageHeight;
    this.width = 0;
    this.height = 0;
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.isFitted = true;
  }

  /** The scale at which the whole image is visible. */
  get fitScale() {
    const wide = Math.max(1, this.width - 2 * MARGIN) / this.imageWidth;
    const high = Math.max(1, this.height - 2 * MARGIN) / this.imageHeight;
    return Math.min(wide, high, MAX_SCALE);
  }

  /** The viewing area has a new size. What was in its middle stays there; an image that was wholly visible stays so. */
  resize(width, height) {
    const middle = this.toImage(this.width / 2, this.height / 2);
    const isFirst = !this.width;
    this.width = width;
    this.height = height;
    if (this.isFitted || isFirst) return this.fit();
    this.x = width / 2 - middle.x * this.scale;
    this.y = height / 2 - middle.y * this.scale;
    this._keepVisible();
  }

  fit() {
    this.scale = this.fitScale;
    this.x = (this.width - this.imageWidth * this.scale) / 2;
    this.y = (this.height - this.imageHeight * this.scale) / 2;
    this.isFitted = true;
  }

  /** Scale by `factor`; the image's point under (x, y) stays there. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const point = this.toImage(x, y);
    this.scale = Math.min(MAX_SCALE, Math.max(this.fitScale, this.scale * factor));
    this.x = x - point.x * this.scale;
    this.y = y - point.y * this.scale;
    this.isFitted = this.scale <= this.fitScale * 1.001;
    if (this.isFitted) this.fit();
    this._keepVisible();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this._keepVisible();
  }

  toImage(x, y) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  toScreen(x, y) {
    return { x: x * this.scale + this.x, y: y * this.scale + this.y };
  }

  /** An image larger than the area covers it; a smaller side is in the middle. */
  _keepVisible() {
    this.x = kept(this.x, this.imageWidth * this.scale, this.width);
    this.y = kept(this.y, this.imageHeight * this.scale, this.height);
  }
}

function kept(offset, length, available) {
  if (length + 2 * MARGIN <= available) return (available - length) / 2;
  return Math.min(MARGIN, Math.max(available - MARGIN - length, offset));
}
