"""Parses the messages of ComfyUI's WebSocket. A message that cannot be parsed gives None and never an exception,
because all jobs of the process share one socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MIMES = {1: "image/jpeg", 2: "image/png"}
_REPEATED = b'{"type": "progress_state"'
"""ComfyUI sends it with each event that starts, continues or ends a node, and it grows with the graph: it tells nothing
that those do not."""
_PLAIN_IMAGE, _IMAGE_WITH_METADATA = 1, 4


@dataclass(frozen=True)
class Event:
    """A JSON message. `prompt_id` is None for messages that belong to no job (`status`)."""

    kind: str
    prompt_id: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """An image in a binary message: a preview, or a picture of SaveImageWebsocket.

    `prompt_id` and `node` are None in a message of event type 1, which names neither.
    """

    prompt_id: str | None
    node: str | None
    mime: str
    data: bytes


def parse_text(message: bytes) -> Event | None:
    if message.startswith(_REPEATED):
        return None
    try:
        body = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        return None
    data = body.get("data")
    data = data if isinstance(data, dict) else {}
    return Event(body["type"], _text(data.get("prompt_id")), data)


def parse_binary(message: bytes) -> Frame | None:
    """Layout, big-endian: uint32 event type; then for type 1 uint32 format and the image, for type 4 uint32 length,
    JSON of that length and the image."""
    event_type, second = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if event_type == _PLAIN_IMAGE and second in _MIMES and len(message) > 8:
        return Frame(None, None, _MIMES[second], message[8:])
    if event_type == _IMAGE_WITH_METADATA and len(message) > 8 + second:
        return _frame_with_metadata(message[8 : 8 + second], message[8 + second :])
    return None


def _frame_with_metadata(metadata_json: bytes, data: bytes) -> Frame | None:
    try:
        metadata = json.loads(metadata_json)
    except (ValueError, RecursionError):
        return None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt_id"), str):
        return None
    mime = metadata.get("image_type")
    return Frame(
        metadata["prompt_id"],
        _text(metadata.get("node_id")) or _text(metadata.get("display_node_id")),
        mime if isinstance(mime, str) else "image/jpeg",
        data,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
