"""A strict parser for server-sent events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flask.testing import FlaskClient


@dataclass(frozen=True)
class Event:
    """An event; `data` is None for comments, and the text itself if it is not JSON."""

    name: str | None
    data: Any
    raw: str


def events_of(text: str) -> list[Event]:
    """All blocks of the stream, including comments. Fails on lines that the format does not allow."""
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
    """Request a small picture as a stream and return the events."""
    response = client.post(path, json={"prompt": "a cat", "size": "256x256", "stream": True, **fields})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream"), response.text[:500]
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    return events_of(response.text)
