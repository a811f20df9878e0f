"""Compresses long JSON answers for clients that accept gzip, as browsers and the SDKs do."""

from __future__ import annotations

import gzip
from functools import lru_cache

from flask import Response, request

_MIN_BYTES = 2000
"""Of less, compression saves no packet"""
_LEVEL = 6


def compressed(response: Response) -> Response:
    """`response`, compressed if it is long and the client accepts it. For the `after_request` of a blueprint."""
    if response.status_code != 200 or response.is_streamed:
        return response
    data = response.get_data()
    if len(data) < _MIN_BYTES:
        return response
    response.vary.add("Accept-Encoding")
    if request.accept_encodings["gzip"] > 0:
        response.set_data(_gzip(data))
        response.headers["Content-Encoding"] = "gzip"
    return response


@lru_cache(maxsize=16)
def _gzip(data: bytes) -> bytes:
    """Cached, because clients ask for the same lists again and again."""
    return gzip.compress(data, _LEVEL, mtime=0)
