"""Server-sent events as strict readers take them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flask.testing import FlaskClient


@dataclass(frozen=True)
class Event:
    """An event; `data` is None for a comment and the text itself where that is no JSON."""

    name: str | None
    data: Any
    raw: str


def events_of(text: str) -> list[Event]:
    """Every block of the stream, comments too. Fails for a line that the format does not have."""
    assert text.endswith("\n\n")
    return [_event(block) for block in text[:-2].split("\n\n")]


def _event(block: str) -> Event:
    name, data = None, None
    for line in block.split("\n"):
        field, _, value = line.partition(":")
        assert field in ("", "event", "data", "error"), line
        if field == "event":
            name = value.strip()
        elif field == "data":
            data = _json(value.strip())
        elif field == "error":
            name, data = "error:", _json(value.strip())
    return Event(name, data, block)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def stream(client: FlaskClient, path: str, **fields: Any) -> list[Event]:
    """The events of a streamed answer to a JSON request for a small picture."""
    answer = client.post(path, json={"prompt": "a cat", "size": "256x256", "stream": True, **fields})
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text[:500]
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Accel-Buffering"] == "no"
    return events_of(answer.text)
