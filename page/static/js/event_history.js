// What a tab that opens later needs of the events so far: the last of each kind, and the memory of the last minutes.

const KEPT = new Set(["hello", "status", "catalogue", "pulls"]);
const MEMORY_S = 300;

export class EventHistory {
  #latest = new Map();
  #memory = [];

  add({ event, data, id }) {
    if (event === "memory") {
      const samples = Array.isArray(data) ? data : [data];
      const last = Array.isArray(data) ? [] : this.#memory;
      const newest = samples.at(-1)?.at ?? 0;
      this.#memory = [...last, ...samples].filter((sample) => sample.at >= newest - MEMORY_S);
    } else if (KEPT.has(event)) {
      this.#latest.set(event, { event, data, id });
    }
  }

  clear() {
    this.#latest.clear();
    this.#memory = [];
  }

  /** The last event of `type`; "memory": all samples of the last minutes as one list. Undefined if there was none. */
  latest(type) {
    if (type === "memory") return this.#memory.length ? this.#memory : undefined;
    return this.#latest.get(type)?.data;
  }

  /** Events that bring a new tab to the present. */
  events() {
    const memory = this.#memory.length ? [{ event: "memory", data: this.#memory, id: null }] : [];
    return [...this.#latest.values(), ...memory];
  }
}
