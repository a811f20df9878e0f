"""What comes through ComfyUI's WebSocket, read into two small values. Anything it cannot read is None, never an
exception: the socket belongs to all the jobs of the process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MIMES = {1: "image/jpeg", 2: "image/png"}
_PLAIN_IMAGE, _IMAGE_WITH_METADATA = 1, 4


@dataclass(frozen=True)
class Event:
    """A JSON message. `prompt_id` is None for those that belong to no job (`status`)."""

    kind: str
    prompt_id: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """An image in a binary message: a preview, or a picture of SaveImageWebsocket.

    Event 1 names neither job nor node, so both are None.
    """

    prompt_id: str | None
    node: str | None
    mime: str
    data: bytes


def read_text(message: bytes) -> Event | None:
    try:
        body = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        return None
    data = body.get("data")
    data = data if isinstance(data, dict) else {}
    return Event(body["type"], _text(data.get("prompt_id")), data)


def read_binary(message: bytes) -> Frame | None:
    """Big-endian: uint32 event; then for 1 uint32 format and the image, for 4 uint32 length, JSON and the image."""
    event, second = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if event == _PLAIN_IMAGE and second in _MIMES and len(message) > 8:
        return Frame(None, None, _MIMES[second], message[8:])
    if event == _IMAGE_WITH_METADATA and len(message) > 8 + second:
        return _with_metadata(message[8 : 8 + second], message[8 + second :])
    return None


def _with_metadata(metadata: bytes, data: bytes) -> Frame | None:
    try:
        about = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or not isinstance(about.get("prompt_id"), str):
        return None
    mime = about.get("image_type")
    return Frame(
        about["prompt_id"],
        _text(about.get("node_id")) or _text(about.get("display_node_id")),
        mime if isinstance(mime, str) else "image/jpeg",
        data,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
