"""What the index knows of an image, and what it is asked for."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from errors import CursorInvalid
from image_store.search_text import SEARCHED_CHARS

ChangeKind = Literal["added", "changed", "removed"]
_COUNTED_IN = 4096
_SEARCH_FACTOR = 7
"""Bytes of the text index for each byte that is searched, as measured with English and Chinese prompts"""


@dataclass(frozen=True)
class ImageFacts:
    """How an image was made; None: not known, as after the index was lost.

    `seed`: None also if the picture does not depend on one. `settings`: the fields of the request that draws it again,
    without images. `adjusted`, `ignored`: what differs from its request, as JSON. `index`: its position in the batch.
    `sources`: the names of stored images that it was made from. `owner`: whose it is, as `Caller.owner_hash` has it.
    `engine`: the name of the engine or host that drew it; None also if there was only one.
    """

    width: int | None = None
    height: int | None = None
    model: str | None = None
    task: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] | None = None
    adjusted: tuple[Mapping[str, Any], ...] | None = None
    ignored: tuple[Mapping[str, Any], ...] | None = None
    request_id: str | None = None
    index: int | None = None
    sources: tuple[str, ...] = ()
    owner: str = ""
    engine: str | None = None


def index_bytes(facts: ImageFacts) -> int:
    """What the texts of an image take in the index, in whole 4,096 bytes: 0 for prompts of an ordinary length."""
    prompt = facts.prompt or ""
    stored_once = (facts.prompt, facts.negative_prompt)
    others = [value for value in (facts.settings or {}).values() if value not in stored_once]
    details = json.dumps([others, facts.adjusted, facts.ignored])
    taken = sum(_size(text) for text in (prompt, facts.negative_prompt or "", details))
    taken += _SEARCH_FACTOR * _size(prompt[:SEARCHED_CHARS])
    return taken // _COUNTED_IN * _COUNTED_IN


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


@dataclass(frozen=True)
class ImageRecord:
    """An image of the index. `created`: Unix time; the time of last use if the index was lost."""

    name: str
    size_bytes: int
    created: float
    is_favourite: bool
    facts: ImageFacts


@dataclass(frozen=True)
class ImageFilter:
    """Which images are listed: None or empty: all. `owner`: as `ImageFacts.owner`. `text`: words that the prompt contains.
    `since` and `until`: Unix times, both included."""

    owner: str | None = None
    text: str = ""
    model: str | None = None
    task: str | None = None
    is_favourite: bool | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Cursor:
    """The last image of a page: its place in the order of all images, and its number."""

    place: float
    id: int

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.place!r} {self.id}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises CursorInvalid."""
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            place, id = base64.b64decode(padded, b"-_", validate=True).decode("ascii").split(" ")
            cursor = cls(float(place), int(id))
        except (ValueError, binascii.Error):
            cursor = None
        # A number that SQLite does not take, or a second spelling of a cursor
        if cursor is None or not math.isfinite(cursor.place) or not 0 < cursor.id < 1 << 63:
            raise CursorInvalid(
                "`cursor` is not one that this server made: send `next` of the page before, unchanged, or none.",
                param="cursor",
            )
        return cursor


@dataclass(frozen=True)
class ImagePage:
    """Some of the images that a filter selects, newest first. `next`: for the page after it, None if it is the last one.
    `total`: how many there are on all pages."""

    images: tuple[ImageRecord, ...]
    next: Cursor | None
    total: int


@dataclass(frozen=True)
class Position:
    """How many changes an index has seen. `epoch`: another one for each index, so that positions in a lost one are
    recognised."""

    epoch: str
    number: int


@dataclass(frozen=True)
class Change:
    """One change of the index: its number, the name of the image and whose it is."""

    number: int
    kind: ChangeKind
    name: str
    owner: str = field(default="", repr=False)
