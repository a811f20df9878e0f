"""Compresses long JSON answers and the events of the server for clients that accept gzip, as browsers and the SDKs do."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from functools import lru_cache

from flask import Response, request

_MIN_BYTES = 2000
"""Of less, compression saves no packet"""
_LEVEL = 6
_STREAM_LEVEL = 1
_STREAM_WINDOW = 16 + zlib.MAX_WBITS
"""gzip, with a window that reaches back to the status before, of which most is the same"""
_STREAM_MEMORY = 6
"""With that window 160 kB for each stream"""


def compressed(response: Response, *, is_for_all: bool = True) -> Response:
    """`response`, compressed if it is long and the client accepts it. For the `after_request` of a blueprint. `is_for_all`:
    false if it has what only its caller may see, which is not cached: a page of images may have 10 MB and prompts."""
    if response.status_code != 200 or response.is_streamed:
        return response
    data = response.get_data()
    if len(data) < _MIN_BYTES:
        return response
    response.vary.add("Accept-Encoding")
    if request.accept_encodings["gzip"] > 0:
        response.set_data(_cached_gzip(data) if is_for_all else _gzip(data))
        response.headers["Content-Encoding"] = "gzip"
    return response


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, _LEVEL, mtime=0)


_cached_gzip = lru_cache(maxsize=16)(_gzip)
"""Clients ask for the same lists again and again"""


def compressed_stream(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks` as one gzip stream, each complete when it is sent, so that the client sees it at once."""
    packer = zlib.compressobj(_STREAM_LEVEL, zlib.DEFLATED, _STREAM_WINDOW, _STREAM_MEMORY)
    for chunk in chunks:
        yield packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()
