// Reads /api/events and connects again when the stream ends. Used by the shared worker, or by the tab itself.

import { readEvents } from "./sse.js";

const SILENCE_MS = 45_000; // the server sends a comment every 15 s
const LONGEST_PAUSE_MS = 15_000;

export class EventReader {
  #url;
  #key = null;
  #lastId = null;
  #controller = null;
  #failures = 0;
  #wake = () => {};
  #isRunning = false;

  /** `onEvent({event, data, id})` with data parsed; `onState("connecting"|"live"|"busy"|"offline"|"unauthorized"|"missing")`. */
  constructor(url, { onEvent, onState }) {
    this.#url = url;
    this.onEvent = onEvent;
    this.onState = onState;
  }

  setKey(key) {
    if (key === this.#key) return;
    this.#key = key;
    this.#lastId = null; // another key sees other images
    if (this.#isRunning) this.reconnect();
  }

  start() {
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#run();
  }

  stop() {
    this.#isRunning = false;
    this.#controller?.abort();
    this.#wake();
  }

  /** Connect again now, such as when the network is back. */
  reconnect() {
    this.#failures = 0;
    this.#controller?.abort();
    this.#wake();
  }

  async #run() {
    while (this.#isRunning) {
      this.onState("connecting");
      const state = await this.#connect();
      if (!this.#isRunning) return;
      this.onState(state);
      await this.#pause(state);
    }
  }

  /** One connection; returns the state after it. */
  async #connect() {
    const controller = (this.#controller = new AbortController());
    let timer = null;
    const watch = () => {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(), SILENCE_MS);
    };
    try {
      watch();
      const headers = { Accept: "text/event-stream" };
      if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
      if (this.#lastId) headers["Last-Event-ID"] = this.#lastId;
      const response = await fetch(this.#url, { headers, signal: controller.signal, cache: "no-store" });
      if (response.status === 401) return "unauthorized";
      if (response.status === 404 || response.status === 403) return "missing";
      if (!response.ok) return (await isBusy(response)) ? "busy" : "offline";
      this.onState("live");
      this.#failures = 0;
      await readEvents(response, (event) => this.#handle(event), watch);
    } catch {
      // The connection failed or was closed: #run tries again.
    } finally {
      clearTimeout(timer);
    }
    return "offline";
  }

  #handle({ event, data, id }) {
    if (id !== null) this.#lastId = id;
    let parsed;
    try {
      parsed = JSON.parse(data);
    } catch {
      return;
    }
    this.onEvent({ event, data: parsed, id });
  }

  #pause(state) {
    const forEver = state === "unauthorized" || state === "missing";
    const longest = forEver ? 60_000 : Math.min(LONGEST_PAUSE_MS, 500 * 2 ** this.#failures++);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, longest * (0.7 + 0.3 * Math.random()));
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** Whether the server answers, but has no place for another stream. */
async function isBusy(response) {
  const answer = await response.json().catch(() => null);
  return answer?.error?.code === "events.too_many_streams";
}
