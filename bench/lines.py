"""Lines of a streamed HTTP response, each as soon as it has arrived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

_CHUNK = 65_536


class Content(Protocol):
    """The content of a response, such as `http.client.HTTPResponse` or the `raw` of a response of requests."""

    def read1(self, amount: int, /) -> bytes: ...


def lines_of(content: Content) -> Iterator[bytes]:
    """Every line without its line feed. Takes time linear in the length of a line, and waits for no more than there is.

    `Response.iter_lines(chunk_size=1)` of requests reads as early but takes quadratic time: minutes for a picture in one
    line.
    """
    pending: list[bytes] = []
    while chunk := content.read1(_CHUNK):
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*pending, line])
            pending = []
        pending.append(rest)
    if last := b"".join(pending):
        yield last
