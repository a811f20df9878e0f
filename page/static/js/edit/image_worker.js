// The worker in which pictures are decoded and encoded: {id, name, task} -> {id, result} or {id, error}.

import { convert, encodeMask } from "./image_codec.js";

const TASKS = { convert, encodeMask };

self.addEventListener("message", async ({ data: { id, name, task } }) => {
  try {
    self.postMessage({ id, result: await TASKS[name](task) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
});
