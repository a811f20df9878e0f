"""Authenticates what hosts send each other through Redis: whoever can write there, and has no key, can make them do
nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from errors import ClusterMessageInvalid

_MAC_BYTES = hashlib.sha256().digest_size


class Seal:
    """HMAC-SHA256 with the key that all hosts share. Each message is sealed for one purpose, such as the job with an id, so
    that it cannot stand where another is expected. It is not encrypted: TLS does that."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def close(self, purpose: str, document: Mapping[str, Any]) -> bytes:
        """The document as JSON, after its code."""
        body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        return self._code(purpose, body) + body

    def is_own(self, purpose: str, data: bytes) -> bool:
        """Whether somebody with this key made it for this purpose."""
        return hmac.compare_digest(data[:_MAC_BYTES], self._code(purpose, data[_MAC_BYTES:]))

    def open(self, purpose: str, data: bytes) -> dict[str, Any]:
        """What `close` was given. Raises ClusterMessageInvalid."""
        if not self.is_own(purpose, data):
            raise ClusterMessageInvalid(
                f"A message ({purpose}) was not made with this installation's key.", purpose=purpose
            )
        try:
            document = json.loads(data[_MAC_BYTES:])
        except (ValueError, RecursionError) as error:
            raise ClusterMessageInvalid(f"A message ({purpose}) is not JSON.", purpose=purpose) from error
        if not isinstance(document, dict):
            raise ClusterMessageInvalid(f"A message ({purpose}) is no object.", purpose=purpose)
        return document

    def _code(self, purpose: str, body: bytes) -> bytes:
        return hmac.digest(self._key, purpose.encode() + b"\0" + body, hashlib.sha256)
