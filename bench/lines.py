"""Lines of a streamed HTTP response, each as soon as it has arrived."""

from __future__ import annotations

from collections.abc import Iterator

import requests

_CHUNK = 65_536


def lines_of(response: requests.Response) -> Iterator[bytes]:
    """Every line without its line feed. Takes time linear in the length of a line, and waits for no more than there is.

    `Response.iter_lines(chunk_size=1)` reads as early but takes quadratic time: minutes for a picture in one line.
    """
    pending: list[bytes] = []
    while chunk := response.raw.read1(_CHUNK):
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*pending, line])
            pending = []
        pending.append(rest)
    if last := b"".join(pending):
        yield last
