"""JSON with pictures in it, in pieces: a picture is turned into base64 slice by slice while it is being sent, so that
no copy of it is ever whole in memory."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SLICE = 3 * (1 << 18)
"""bytes; a multiple of three, so that slices of base64 join without padding"""


@dataclass(frozen=True)
class Base64:
    """A value of a document: `prefix` and these bytes in base64."""

    data: bytes
    prefix: str = ""

    @property
    def length(self) -> int:
        return len(self.prefix) + (len(self.data) + 2) // 3 * 4

    def slices(self) -> Iterator[bytes]:
        yield self.prefix.encode("ascii")
        view = memoryview(self.data)
        for start in range(0, len(view), _SLICE):
            yield base64.b64encode(view[start : start + _SLICE])


class StreamedJson:
    """The JSON text of `document`, whose values may be `Base64`. Can be iterated again and again."""

    def __init__(self, document: Any) -> None:
        pictures: list[Base64] = []
        # Nobody who writes a prompt can guess it.
        mark = secrets.token_hex(16)

        def stand_in(value: Any) -> str:
            if not isinstance(value, Base64):
                raise TypeError(f"{type(value).__name__} is not JSON")
            pictures.append(value)
            return f"{mark}{len(pictures) - 1}"

        text = json.dumps(document, default=stand_in, separators=(",", ":"))
        self._texts = [part.encode("ascii") for part in re.split(rf"{mark}\d+", text)]
        self._pictures = pictures

    def __len__(self) -> int:
        """The number of bytes."""
        return sum(map(len, self._texts)) + sum(picture.length for picture in self._pictures)

    def __iter__(self) -> Iterator[bytes]:
        yield self._texts[0]
        for picture, text in zip(self._pictures, self._texts[1:], strict=True):
            yield from picture.slices()
            yield text
