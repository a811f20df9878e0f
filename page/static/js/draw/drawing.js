// One request for pictures, from the button to the last picture, also across lost connections and a server that restarts.
//
// A stream that breaks off cancels its job, so the request is sent again with the same seed: it gives the same pictures. If
// they were finished meanwhile, they are found in the gallery by the id of the request.

import { pictureUrl } from "../api.js";
import { readDrawing } from "./draw_stream.js";

const MAX_ATTEMPTS = 6;
const BEFORE_STEPS = new Set(["sending", "waiting", "starting"]);
const STOPPING = new Set(["server.stopping", "engine.interrupted"]);

/**
 * Events of `onChange(drawing)`: whenever something to show has changed. Fields to show: `phase` ("sending", "waiting",
 * "starting" (such as by loading a model), "drawing", "reconnecting", "done", "failed", "stopped"), `images` by index
 * (url, seed, size, hal0), `previews` (`onPreview(index, bitmap)`), `progress` (0 to 1 of the present job), `waiting`,
 * `error`, `startedAt`.
 */
export class Drawing {
  #context;
  #request;
  #worker = null;
  #stopWaiting = () => {};

  /** `request`: {path, fields, count, ratio, parts (for forms, without the fields), source}. */
  constructor(request, context, { onChange, onPreview }) {
    this.#request = request;
    this.#context = context;
    this.onChange = onChange;
    this.onPreview = onPreview;
    this.count = request.count;
    this.ratio = request.ratio;
    this.fields = request.fields;
    /** {image: blob, sides: how far it was extended, or null}: what is drawn anew, to compare with; or undefined */
    this.source = request.source;
    this.phase = "sending";
    this.images = [];
    this.progress = 0;
    this.waiting = null;
    this.error = null;
    this.startedAt = performance.now();
    this.drawingSince = null;
    this.id = null;
  }

  get isActive() {
    return !["done", "failed", "stopped"].includes(this.phase);
  }

  get finished() {
    return this.images.filter(Boolean);
  }

  /** The finished ones that were not deleted since. */
  get kept() {
    return this.finished.filter(({ isGone }) => !isGone);
  }

  /** The stored images `names` are deleted. Whether one of them is of this drawing. */
  lose(names) {
    const lost = this.finished.filter(({ url }) => names.includes(url.split("/").at(-1)));
    for (const image of lost) image.isGone = true;
    return lost.length > 0;
  }

  async run() {
    for (let attempt = 1; this.isActive; attempt += 1) {
      const ending = await this.#send();
      if (!this.isActive) return;
      if (ending.type === "end") return this.#end("done");
      const isLost = ending.type === "lost" || STOPPING.has(ending.error?.code);
      if (ending.error?.status === 401 && (await this.#context.api.newKey().catch(() => false))) continue;
      if (!isLost || attempt === MAX_ATTEMPTS) {
        this.error = await this.#context.api.inOwnWords(ending.error ?? { code: "network.unreachable", status: 0, message: ending.message });
        if (!this.isActive) return; // stopped meanwhile
        return this.#end("failed");
      }
      this.#set({ phase: "reconnecting", waiting: null, progress: 0, drawingSince: null });
      await this.#serverAnswers();
      if (this.isActive && (await this.#findFinished())) return this.#end("done");
    }
  }

  /** Ends it; the server is told, because some proxies keep a connection that was closed. */
  stop() {
    if (!this.isActive) return;
    this.#end("stopped");
    this.#context.api.request("api/comfyui/render/cancel", { body: { id: this.id } }).catch(() => {});
  }

  /** Without telling the server: the connection ends with the tab. */
  close() {
    if (this.isActive) this.#end("stopped");
  }

  #end(phase) {
    this.#worker?.terminate();
    this.#worker = null;
    this.#stopWaiting();
    this.#set({ phase });
  }

  #set(changes) {
    Object.assign(this, changes);
    this.onChange(this);
  }

  /** One attempt; resolves with its last message: end, lost or error. */
  #send() {
    this.id = newId();
    const { api } = this.#context;
    const { path, fields, parts } = this.#request;
    const key = api.getKey();
    const headers = { "x-request-id": this.id, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const streamed = path.endsWith("variations") ? {} : { stream: true, partial_images: 3, stream_options: {} };
    const sent = { ...fields, ...streamed, response_format: "url" };
    const message = parts
      ? { url: api.url(path), headers, parts: [...formFields(sent), ...parts] }
      : { url: api.url(path), headers: { ...headers, "Content-Type": "application/json" }, json: JSON.stringify(sent) };
    return new Promise((resolve) => {
      let ending = null;
      const receive = (event) => {
        if (event.type === "closed") resolve(ending ?? { type: "lost", message: "" });
        else if (["end", "lost", "error"].includes(event.type)) ending = event.type === "error" && ending?.type === "error" ? ending : event;
        else this.#handle(event);
        // An error is followed by the end of the stream, which must not hide it.
        if (ending?.type === "error") resolve(ending);
      };
      this.#start(message, receive);
    });
  }

  #start(message, receive) {
    this.#worker?.terminate();
    let hasBegun = false;
    try {
      const worker = new Worker(new URL("draw_worker.js", import.meta.url), { type: "module" });
      worker.addEventListener("message", ({ data }) => {
        hasBegun = true;
        receive(data);
      });
      // Its file cannot be loaded, such as from a server of another version, or the browser has no modules in workers.
      worker.addEventListener("error", () => (hasBegun ? receive({ type: "closed" }) : this.#readHere(message, receive)));
      worker.postMessage(message);
      this.#worker = worker;
    } catch {
      this.#readHere(message, receive);
    }
  }

  #readHere(message, receive) {
    if (!this.isActive) return;
    const controller = new AbortController();
    this.#worker = { terminate: () => controller.abort() };
    readDrawing(message, receive, controller.signal).finally(() => receive({ type: "closed" }));
  }

  #handle(event) {
    if (!this.isActive) return;
    if (event.type === "waiting" && event.waiting === null) {
      this.#set({ phase: "starting", waiting: null });
    } else if (event.type === "waiting") {
      this.#set({ phase: "waiting", waiting: { ...event.waiting, receivedAt: performance.now() } });
    } else if (event.type === "progress") {
      this.#progress(event);
    } else if (event.type === "preview") {
      this.onPreview(this, event.index, event.bitmap);
    } else if (event.type === "image") {
      const { seed = null } = event.hal0.images?.[0] ?? {};
      this.images[event.index] = { url: pictureUrl(event.url.split("/").at(-1)), size: event.size, seed, hal0: event.hal0 };
      this.#set({ phase: "drawing", progress: 0, drawingSince: performance.now() });
    }
  }

  #progress({ value, index }) {
    // 0 is sent before anything has begun, and repeated meanwhile.
    if (this.images[index] || (value === 0 && BEFORE_STEPS.has(this.phase))) return;
    const progress = value / 100;
    if (this.phase === "drawing" && progress === this.progress) return;
    this.#set({ phase: "drawing", waiting: null, progress, drawingSince: this.drawingSince ?? performance.now() });
  }

  async #serverAnswers() {
    const { api } = this.#context;
    for (let pause = 300; this.isActive; pause = Math.min(5000, pause * 1.6)) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pause);
        this.#stopWaiting = () => (clearTimeout(timer), resolve());
      });
      try {
        await api.request("health");
        return;
      } catch {
        // Not yet.
      }
    }
  }

  /** Whether the pictures of the request are in the gallery. Waits while the server still draws them. */
  async #findFinished() {
    const { api, live } = this.#context;
    const { id } = this;
    while (this.isActive) {
      const isDrawn = live.latest("status")?.requests?.some((request) => request.id === id) ?? false;
      let list = [];
      try {
        list = (await api.request("api/images?limit=50")).images.filter((image) => image.request_id === id);
      } catch {
        return false;
      }
      if (list.length >= this.count) {
        for (const image of list) this.images[image.index] = ofGallery(image);
        return true;
      }
      if (!isDrawn) return false;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    return false;
  }
}

/** An image of the gallery as a drawing has it. */
export function ofGallery(image) {
  const { adjusted = [], ignored = [], model = null, seed = null } = image;
  return { url: pictureUrl(image.name), size: `${image.width}x${image.height}`, seed, hal0: { model, adjusted, ignored } };
}

function* formFields(fields) {
  for (const [name, value] of Object.entries(fields)) {
    if (value === null || value === undefined) continue;
    yield [name, typeof value === "object" ? JSON.stringify(value) : String(value)];
  }
}

function newId() {
  // randomUUID needs a secure context, which http in a local network is not.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** A seed that JSON numbers hold exactly. */
export function randomSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high & 0x1fffff) * 2 ** 32 + low;
}
