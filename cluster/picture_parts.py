"""Pictures on their way from a host to the one that waits for them: parts of 1 MB with an expiry (docs/decisions/0048)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from cluster import names
from errors import ClusterPictureLost

PART_BYTES = 1_000_000
KEPT_S = 120
"""Whoever waits fetches them at once. They are gone soon after a process that was killed before it could."""
MAX_BYTES = 400_000_000
"""Of one picture, far above what an engine can make"""


@dataclass(frozen=True)
class StoredPicture:
    """Where one is. `sha256`: hexadecimal, of the whole"""

    bytes: int
    sha256: str

    @property
    def parts(self) -> int:
        return -(-self.bytes // PART_BYTES)


def put(pipeline: Any, job: str, attempt: int, pictures: Sequence[bytes]) -> list[StoredPicture]:
    """Add the commands that store them to `pipeline`."""
    stored = []
    for index, data in enumerate(pictures):
        for part in range(0, len(data), PART_BYTES):
            name = names.picture(job, attempt, index, part // PART_BYTES)
            pipeline.set(name, data[part : part + PART_BYTES], ex=KEPT_S)
        stored.append(StoredPicture(len(data), hashlib.sha256(data).hexdigest()))
    return stored


def keys_of(job: str, attempt: int, stored: Sequence[StoredPicture]) -> tuple[str, ...]:
    """Of all parts."""
    return tuple(
        names.picture(job, attempt, index, part)
        for index, picture in enumerate(stored)
        for part in range(picture.parts)
    )


def fetch(client: redis.Redis, job: str, attempt: int, stored: Sequence[StoredPicture]) -> list[bytes]:
    """The pictures, which stay where they are. Raises ClusterPictureLost if a part is gone or is not what was stored."""
    found = []
    for index, picture in enumerate(stored):
        if not 0 < picture.bytes <= MAX_BYTES:
            raise ClusterPictureLost(f"The size of picture {index} is not one: {picture.bytes}.")
        keys = [names.picture(job, attempt, index, part) for part in range(picture.parts)]
        data = bytearray()
        for key in keys:
            part = client.get(key)
            if not isinstance(part, bytes):
                raise ClusterPictureLost(
                    "A part of the picture is no longer in Redis: it was full, or it was restarted."
                )
            data += part
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise ClusterPictureLost("The picture that came through Redis is not the one that was drawn.")
        found.append(bytes(data))
    return found
