// Reads the stream of one drawing. In a worker, so that decoding pictures never delays typing.

import { readEvents } from "../sse.js";

/**
 * Sends a request and calls `emit` for what comes: {type: "progress", index, value}, {type: "waiting", waiting (null: no longer)},
 * {type: "preview", index, bitmap}, {type: "image", index, url, size, hal0}, {type: "error", error: {code, message, …, status}},
 * {type: "end"}, or {type: "lost", message} if the connection failed. `request`: {url, headers, json} or with `parts`,
 * [name, value or blob, file name], instead of json.
 */
export async function readDrawing(request, emit, signal) {
  try {
    const response = await fetch(request.url, {
      method: "POST",
      headers: { Accept: "text/event-stream, application/json", ...request.headers },
      body: bodyOf(request),
      credentials: "omit",
      signal,
    });
    if (!response.ok) return emit({ type: "error", error: await errorOf(response) });
    // Variations are not streamed.
    if (response.headers.get("Content-Type")?.startsWith("application/json")) return emitAll(await response.json(), emit);
    let hasEnded = false;
    let previews = Promise.resolve();
    await readEvents(response, ({ data }) => {
      if (data === "[DONE]") hasEnded = true;
      else previews = previews.then(() => handle(JSON.parse(data), emit));
    });
    await previews;
    emit(hasEnded ? { type: "end" } : { type: "lost", message: "" });
  } catch (error) {
    if (error.name !== "AbortError") emit({ type: "lost", message: String(error.message) });
  }
}

function emitAll({ data, size, _hal0: hal0 = {} }, emit) {
  data.forEach(({ url }, index) => emit({ type: "image", index, url, size, hal0: { ...hal0, images: hal0.images?.slice(index) } }));
  emit({ type: "end" });
}

function bodyOf({ json, parts }) {
  if (!parts) return json;
  const form = new FormData();
  for (const [name, value, fileName] of parts) {
    if (fileName) form.append(name, value, fileName);
    else form.append(name, value);
  }
  return form;
}

async function errorOf(response) {
  const answer = await response.json().catch(() => null);
  const error = answer?.error ?? { code: `http.${response.status}`, message: "" };
  return { ...error, status: response.status };
}

async function handle(event, emit) {
  if (event.error) return emit({ type: "error", error: { status: 500, ...event.error } });
  const entry = event.data?.[0];
  if (event.type?.endsWith(".partial_image")) {
    const bitmap = await decode(event.b64_json, event.output_format).catch(() => null);
    if (bitmap) emit({ type: "preview", index: entry?.index ?? 0, bitmap }, [bitmap]);
  } else if (entry?.url) {
    emit({ type: "image", index: entry.index, url: entry.url, size: event.size, hal0: event._hal0 ?? {} });
  } else if (event.waiting !== undefined) {
    emit({ type: "waiting", waiting: event.waiting });
  } else if (entry) {
    emit({ type: "progress", index: entry.index, value: entry.progress });
  }
}

async function decode(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: `image/${format}` }));
}
