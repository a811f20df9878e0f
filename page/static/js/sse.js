// Server-sent events, read from fetch: EventSource cannot send a key.

export class SseParser {
  #rest = "";
  #event = { event: "message", data: [], id: null };

  /** The events that are complete with `text`: [{event, data, id}]; id is null if the event has none. */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#event.data.length) events.push({ ...this.#event, data: this.#event.data.join("\n") });
        this.#event = { event: "message", data: [], id: null };
        continue;
      }
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "data") this.#event.data.push(value);
      else if (name === "event") this.#event.event = value;
      else if (name === "id") this.#event.id = value;
    }
    return events;
  }
}

/** Calls `onEvent` for each event of a fetch response, and `onBytes` whenever something arrives. Ends with the stream. */
export async function readEvents(response, onEvent, onBytes = () => {}) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      for (const event of parser.push(decoder.decode(value, { stream: true }))) onEvent(event);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
