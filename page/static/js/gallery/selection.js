// Which images are selected: pure, so that mouse, touch and keyboard share one rule.

/** `names`: a Set. `anchor`: the name from which a range is counted. */
export class Selection {
  constructor() {
    this.names = new Set();
    this.anchor = null;
  }

  get size() {
    return this.names.size;
  }

  has(name) {
    return this.names.has(name);
  }

  toggle(name) {
    if (this.names.has(name)) this.names.delete(name);
    else this.names.add(name);
    this.anchor = name;
  }

  /** All of `order` from the anchor to `name`, both included; only `name` if the anchor is not there. */
  extend(name, order) {
    const to = order.indexOf(name);
    const from = this.anchor === null ? to : order.indexOf(this.anchor);
    if (from < 0 || to < 0) {
      this.toggle(name);
      return;
    }
    for (let i = Math.min(from, to); i <= Math.max(from, to); i += 1) this.names.add(order[i]);
  }

  all(order) {
    this.names = new Set(order);
  }

  clear() {
    this.names.clear();
    this.anchor = null;
  }

  /** Forget those that are not there any more. */
  keep(isThere) {
    for (const name of this.names) if (!isThere(name)) this.names.delete(name);
  }
}
