// Runs the tasks of image_codec.js in a worker, or here if the browser has none that can draw.

import * as codec from "./image_codec.js";

const IDLE_MS = 20_000;

let worker = null;
let last = 0;
let idle = 0;
const waiting = new Map();

/** The result of `codec[name](task)`. Rejects as that does. */
export function run(name, task) {
  const target = startedWorker();
  if (!target) return codec[name](task);
  clearTimeout(idle);
  const id = (last += 1);
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, name, task });
    target.postMessage({ id, name, task });
  });
}

function startedWorker() {
  if (worker !== null) return worker;
  worker = canDraw() ? new Worker(new URL("image_worker.js", import.meta.url), { type: "module" }) : false;
  if (!worker) return worker;
  worker.addEventListener("message", ({ data }) => finish(data));
  // A browser that has workers, but no modules in them, does the work here.
  worker.addEventListener("error", () => {
    worker = false;
    for (const [id, { resolve, reject, name, task }] of waiting) {
      waiting.delete(id);
      codec[name](task).then(resolve, reject);
    }
  });
  return worker;
}

function finish({ id, result, error }) {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
  // What it holds of large pictures is freed with it.
  if (!waiting.size) idle = setTimeout(stop, IDLE_MS);
}

function stop() {
  if (waiting.size || !worker) return;
  worker.terminate();
  worker = null;
}

function canDraw() {
  return typeof Worker === "function" && typeof OffscreenCanvas === "function" && "convertToBlob" in OffscreenCanvas.prototype;
}
