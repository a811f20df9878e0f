"""Serializes JSON that contains pictures in chunks: pictures are encoded to base64 slice by slice while they are sent,
so that memory never holds a complete encoded copy."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SLICE_BYTES = 3 * (1 << 18)
"""A multiple of three, so that the base64 slices can be joined without padding"""


@dataclass(frozen=True)
class Base64:
    """A JSON string value: `prefix` followed by `data` in base64."""

    data: bytes
    prefix: str = ""

    @property
    def length(self) -> int:
        """Length of the value in bytes"""
        return len(self.prefix) + (len(self.data) + 2) // 3 * 4

    def slices(self) -> Iterator[bytes]:
        yield self.prefix.encode("ascii")
        view = memoryview(self.data)
        for start in range(0, len(view), _SLICE_BYTES):
            yield base64.b64encode(view[start : start + _SLICE_BYTES])


class StreamedJson:
    """The JSON text of `document`, whose values may be `Base64`. Can be iterated more than once. Raises TypeError for
    values that JSON does not support."""

    def __init__(self, document: Any) -> None:
        pictures: list[Base64] = []
        # Random, so that no prompt can contain it.
        marker = secrets.token_hex(16)

        def placeholder(value: Any) -> str:
            if not isinstance(value, Base64):
                raise TypeError(f"{type(value).__name__} is not JSON serializable")
            pictures.append(value)
            return marker

        text = json.dumps(document, default=placeholder, separators=(",", ":"))
        self._texts = [part.encode("ascii") for part in text.split(marker)]
        self._pictures = pictures

    def __len__(self) -> int:
        """Length of the JSON text in bytes"""
        return sum(map(len, self._texts)) + sum(picture.length for picture in self._pictures)

    def __iter__(self) -> Iterator[bytes]:
        if len(self) <= _SLICE_BYTES:
            yield b"".join(self._parts())  # the server sends each piece on its own
        else:
            yield from self._parts()

    def _parts(self) -> Iterator[bytes]:
        yield self._texts[0]
        for picture, text in zip(self._pictures, self._texts[1:], strict=True):
            yield from picture.slices()
            yield text
