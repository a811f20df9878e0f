"""Live events that a test writes itself, for states that a sketch engine cannot be in."""

from __future__ import annotations

import json
from typing import Any

_SCRIPT = """
delete window.SharedWorker;  // so that the tab reads the events itself
const fetchOverNetwork = window.fetch;
window.fetch = (resource, options) => {
  if (!String(resource).endsWith("/api/events")) return fetchOverNetwork(resource, options);
  const body = new ReadableStream({
    start(controller) {
      window.pushEvent = (event, data) =>
        controller.enqueue(new TextEncoder().encode(`id: e-1\\nevent: ${event}\\ndata: ${JSON.stringify(data)}\\n\\n`));
      window.endEvents = () => controller.close();
      window.pushEvent("hello", window.firstHello ?? { version: "1", key: null });
    },
  });
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
};
"""


class ScriptedEvents:
    """The event stream of `page`, opened before the page itself."""

    def __init__(self, page: Any, hello: dict[str, Any] | None = None) -> None:
        self._page = page
        page.add_init_script(f"window.firstHello = {json.dumps(hello)};{_SCRIPT}")

    def send(self, event: str, data: Any) -> None:
        self._page.wait_for_function("() => window.pushEvent")
        self._page.evaluate("([event, data]) => window.pushEvent(event, data)", [event, data])

    def end(self) -> None:
        """The connection is lost; the page opens another one a moment later."""
        self._page.evaluate("() => window.endEvents()")
