"""`Idempotency-Key`: which request a key belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from flask import Request

from api.dialect import Endpoint
from api.preferences import prefers_async
from errors import IdempotencyKeyInvalid

HEADER = "Idempotency-Key"
REPLAYED = "idempotency-replayed"
"""Of an answer: `true` if it is that of an earlier request"""
STORED = "idempotency-stored"
"""Of an answer: `false` if a retry would draw again, because the disk is full"""
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


def idempotency_key(request: Request) -> str | None:
    """The key of the request; None if it has none. Raises IdempotencyKeyInvalid."""
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise IdempotencyKeyInvalid(
            f"`{HEADER}` must be sent once, with 1 to 255 printable ASCII characters, such as a UUID.",
            param=HEADER,
        )
    return keys[0]


def may_outlive_connection(request: Request) -> bool:
    """Whether the headers of a request for pictures may say that it is answered later, or joins another one."""
    return HEADER in request.headers or prefers_async(request)


def fingerprint(endpoint: Endpoint, body: Mapping[str, Any], files: tuple[tuple[str, bytes], ...]) -> str:
    """The same for equal requests, however their bodies are written: forms have a random boundary."""
    digest = hashlib.sha256(f"{endpoint.task}\n{endpoint.is_gpustack}\n".encode())
    digest.update(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    for name, data in files:
        digest.update(f"\n{name!r}:{len(data)}:".encode())
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()
