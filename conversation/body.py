"""The body of a request: read in memory if it is small, else kept in a file without a name, so that a hundred megabytes cost
no memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from tempfile import TemporaryFile
from typing import IO

from conversation.form_fields import FormField, form_field
from conversation.json_fields import JsonField, top_level_field

MAX_IN_MEMORY_BYTES = 1_000_000
_BLOCK_BYTES = 64 * 1024

Field = JsonField | FormField


class RequestBody:
    """A complete body. `close` it as soon as it was sent, to free memory and disk space."""

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self._content = content

    @classmethod
    def read(cls, stream: IO[bytes]) -> RequestBody:
        """Everything that `stream` has. Raises OSError, and what reading it raises."""
        beginning = bytearray()
        while len(beginning) <= MAX_IN_MEMORY_BYTES:
            block = stream.read(_BLOCK_BYTES)
            if not block:
                return cls(bytes(beginning))
            beginning += block
        with TemporaryFile(buffering=0) as file:
            view = memoryview(beginning)
            while view:
                view = view[file.write(view) :] or memoryview(stream.read(_BLOCK_BYTES))
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __len__(self) -> int:
        return len(self._content)

    def contains(self, text: bytes) -> bool:
        """Whether `text` occurs anywhere in it."""
        return self._content.find(text) >= 0

    def json_field(self, name: str) -> JsonField:
        """See `top_level_field`."""
        return top_level_field(self._content, name)

    def form_field(self, content_type: str, name: str) -> FormField:
        """See `form_fields.form_field`."""
        return form_field(self._content, content_type, name)

    def with_replaced(self, replacements: Mapping[Field, bytes]) -> NewBody:
        """This body with other bytes in the place of some fields."""
        return NewBody(self._content, replacements)

    def bytes(self) -> bytes:
        """All of it, in memory."""
        return bytes(self._content)

    def close(self) -> None:
        """See the class."""
        if isinstance(self._content, mmap.mmap):
            self._content.close()
        self._content = b""


class NewBody:
    """A body in blocks, as http.client sends it."""

    def __init__(self, content: bytes | mmap.mmap, replacements: Mapping[Field, bytes]) -> None:
        self._content = content
        self._replacements = sorted(replacements.items(), key=lambda item: item[0].start)
        grown = sum(len(new) - (field.end - field.start) for field, new in self._replacements)
        self.length = len(content) + grown

    def __iter__(self) -> Iterator[bytes]:
        position = 0
        for field, new in self._replacements:
            yield from self._blocks(position, field.start)
            yield new
            position = field.end
        yield from self._blocks(position, len(self._content))

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        for position in range(start, end, _BLOCK_BYTES):
            yield self._content[position : min(end, position + _BLOCK_BYTES)]
