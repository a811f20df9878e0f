"""Pictures on their way through Redis: parts of 1 MB with an expiry (docs/decisions/0048)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


def measured(data: bytes) -> StoredPicture:
    """What its parts are checked by."""
    return StoredPicture(len(data), hashlib.sha256(data).hexdigest())


def put_parts(pipeline: Any, key: Callable[[int], str], data: bytes, kept_s: int) -> None:
    """Add the commands that store a picture to `pipeline`. `key`: of a part, by its number."""
    for start in range(0, len(data), PART_BYTES):
        pipeline.set(key(start // PART_BYTES), data[start : start + PART_BYTES], ex=kept_s)


def join_parts(client: redis.Redis, key: Callable[[int], str], stored: StoredPicture) -> bytes | None:
    """What `put_parts` was given, not compared with its SHA-256; None if a part is gone."""
    data = bytearray()
    for number in range(stored.parts):
        part = client.get(key(number))
        if not isinstance(part, bytes):
            return None
        data += part
    return bytes(data)


def put(pipeline: Any, job: str, attempt: int, pictures: Sequence[bytes]) -> list[StoredPicture]:
    """Add the commands that store what a job has drawn to `pipeline`."""
    for index, data in enumerate(pictures):
        put_parts(pipeline, partial(names.picture, job, attempt, index), data, KEPT_S)
    return [measured(data) for data in pictures]


def keys_of(job: str, attempt: int, stored: Sequence[StoredPicture]) -> tuple[str, ...]:
    """Of all parts of what a job has drawn."""
    return tuple(
        names.picture(job, attempt, index, part)
        for index, picture in enumerate(stored)
        for part in range(picture.parts)
    )


def fetch(client: redis.Redis, job: str, attempt: int, stored: Sequence[StoredPicture]) -> list[bytes]:
    """What a job has drawn, which stays where it is. Raises ClusterPictureLost if a part is gone or is not what was
    stored."""
    found = []
    for index, picture in enumerate(stored):
        if not 0 < picture.bytes <= MAX_BYTES:
            raise ClusterPictureLost(f"The size of picture {index} is not one: {picture.bytes}.")
        data = join_parts(client, partial(names.picture, job, attempt, index), picture)
        if data is None:
            raise ClusterPictureLost(
                "A part of the picture is no longer in Redis: it was restarted, or this process was stopped for long."
            )
        if measured(data) != picture:
            raise ClusterPictureLost("The picture that came through Redis is not the one that was drawn.")
        found.append(data)
    return found
