// The worker of one drawing; ends with it.

import { readDrawing } from "./draw_stream.js";

self.addEventListener("message", ({ data }) => {
  readDrawing(data, (message, transfer = []) => self.postMessage(message, transfer)).finally(() => self.postMessage({ type: "closed" }));
});
