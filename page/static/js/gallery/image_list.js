// The images of the gallery as far as they are read, newest first, and what of them is shown. Knows the API and the
// events, no elements.

const PAGE = 100;
const MOST_AT_ONCE = 200;

/** Whether `image` is one that the filter `{q, model, from, to, favourite}` lets through. As the server decides it,
 * except for the search, of which only the server knows every rule: here each word has to be in the prompt. */
export function matches(image, filter) {
  if (filter.model && image.model !== filter.model) return false;
  if (filter.favourite && !image.favourite) return false;
  if (filter.from && image.created < filter.from) return false;
  if (filter.to && image.created >= filter.to) return false;
  if (!filter.q) return true;
  const text = `${image.prompt ?? ""} ${image.negative_prompt ?? ""} ${image.model ?? ""}`.toLocaleLowerCase();
  return filter.q.toLocaleLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** The query of GET /api/images for a filter. */
export function query(filter, cursor, limit) {
  const fields = new URLSearchParams({ limit: String(limit) });
  if (cursor) fields.set("cursor", cursor);
  for (const name of ["q", "model", "from", "to"]) if (filter[name]) fields.set(name, String(filter[name]));
  if (filter.favourite) fields.set("favourite", "true");
  return `/api/images?${fields}`;
}

/**
 * `images`: those read, newest first. `waiting`: new ones that are not shown yet, because the reader has scrolled away
 * from the top. `total`: how many match on the server. `state`: "loading", "ready" or "failed", then with `error`.
 * `onChange(kind)` is called after each change: "reset", "more", "added", "removed", "changed" or "state".
 */
export class ImageList {
  constructor(api, onChange) {
    this.api = api;
    this.onChange = onChange;
    this.filter = {};
    this.reading = null;
    this.turn = 0;
    this.missed = null;
    this.clear();
  }

  /** Also makes the answers to earlier requests worthless. */
  clear() {
    this.turn += 1;
    this.reading = null;
    this.images = [];
    this.names = new Set();
    this.waiting = [];
    this.total = 0;
    this.cursor = null;
    this.isComplete = false;
    this.state = "loading";
    this.error = null;
  }

  /** Show what matches `filter`, from the newest on. */
  async start(filter) {
    this.filter = filter;
    this.clear();
    this.onChange("reset");
    await this.more();
  }

  /** Read the next page, unless one is being read already. */
  async more() {
    if (this.isComplete || this.reading) return this.reading;
    const reading = this.read(this.turn).finally(() => {
      if (this.reading === reading) this.reading = null;
    });
    this.reading = reading;
    return reading;
  }

  async read(turn) {
    try {
      const page = await this.api.request(query(this.filter, this.cursor, PAGE));
      if (turn !== this.turn) return;
      const isFirst = this.cursor === null;
      this.append(page);
      this.state = "ready";
      this.error = null;
      this.onChange(isFirst ? "reset" : "more");
    } catch (error) {
      if (turn !== this.turn) return;
      this.state = "failed";
      this.error = error;
      this.onChange("state");
    }
  }

  append(page) {
    for (const image of page.images) {
      if (this.names.has(image.name)) continue;
      this.names.add(image.name);
      this.images.push(image);
    }
    this.total = page.total ?? this.images.length;
    this.cursor = page.next;
    this.isComplete = !page.next;
  }

  /** Read again as many as are shown: after a time without events. Keeps what is shown until the answers are there. */
  async readAgain() {
    if (this.missed) {
      this.isOutdated = true; // what is being read may be older than this call
      return;
    }
    do {
      this.isOutdated = false;
      this.missed = [];
      await this.readPages();
      this.missed = null;
    } while (this.isOutdated);
  }

  async readPages() {
    const { filter, turn } = this;
    const wanted = Math.max(PAGE, this.images.length);
    const pages = [];
    let cursor = null;
    let count = 0;
    try {
      do {
        const page = await this.api.request(query(filter, cursor, MOST_AT_ONCE));
        pages.push(page);
        cursor = page.next;
        count += page.images.length;
      } while (cursor && count < wanted);
    } catch (error) {
      if (this.images.length || turn !== this.turn) return; // what is shown is better than an error
      this.state = "failed";
      this.error = error;
      this.onChange("state");
      return;
    }
    if (turn !== this.turn) return;
    this.clear();
    this.state = "ready";
    for (const page of pages) this.append(page);
    this.onChange("added");
    // What happened meanwhile may be missing in the answers.
    for (const event of this.missed) this.apply(event, true);
  }

  /** One event about an image. `isAtTop`: whether a new one may be shown at once. */
  take(event, isAtTop) {
    this.missed?.push(event);
    this.apply(event, isAtTop);
  }

  apply({ change, image }, isAtTop) {
    if (change === "removed") this.remove([image.name]);
    else if (change === "added" && !this.names.has(image.name)) this.add(image, isAtTop);
    else this.replace(image);
  }

  add(image, isAtTop) {
    if (!matches(image, this.filter)) return;
    this.names.add(image.name);
    this.total += 1;
    if (isAtTop) this.insert(image);
    else this.waiting.unshift(image);
    this.onChange(isAtTop ? "added" : "state");
  }

  insert(image) {
    // Mostly at the front; images of several workers may arrive out of order.
    let place = 0;
    while (place < this.images.length && this.images[place].created > image.created) place += 1;
    this.images.splice(place, 0, image);
  }

  /** Show the new ones that waited. */
  showWaiting() {
    const waiting = this.waiting.reverse();
    this.waiting = [];
    for (const image of waiting) this.insert(image);
    this.onChange("added");
  }

  replace(image) {
    const index = this.indexOf(image.name);
    if (index < 0) return;
    if (matches(image, this.filter)) {
      this.images[index] = { ...this.images[index], ...image };
      this.onChange("changed");
    } else {
      this.remove([image.name]);
    }
  }

  /** Names that are gone. */
  remove(names) {
    const gone = new Set(names.filter((name) => this.names.has(name)));
    if (!gone.size) return;
    this.images = this.images.filter((image) => !gone.has(image.name));
    this.waiting = this.waiting.filter((image) => !gone.has(image.name));
    for (const name of gone) this.names.delete(name);
    this.total = Math.max(0, this.total - gone.size);
    this.onChange("removed");
  }

  indexOf(name) {
    return this.names.has(name) ? this.images.findIndex((image) => image.name === name) : -1;
  }

  find(name) {
    return this.images[this.indexOf(name)] ?? null;
  }
}
