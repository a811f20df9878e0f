"""The input images of one request on their way to the hosts: in Redis once, however many jobs read them."""

from __future__ import annotations

from functools import partial
from typing import Any

import redis

from cluster import names
from cluster.job_documents import JobDocument
from cluster.picture_parts import StoredPicture, join_parts, measured, put_parts
from errors import ClusterMessageInvalid, RequestCancelled
from generation import Uploads


class InputImages:
    """Those of one request. `front`: the process that waits for it. `entries`: name, number of bytes and SHA-256 of each, in
    order. `is_stored`: whether they were in Redis when that was last looked at."""

    def __init__(self, front: str, request_id: str, uploads: Uploads) -> None:
        self._front, self._request_id, self._uploads = front, request_id, uploads
        stored = ((name, measured(uploads.data(name))) for name in uploads.names())
        self.entries = tuple((name, each.bytes, each.sha256) for name, each in stored)
        self.keys = keys_of(front, request_id, self.entries)
        self.is_stored = not self.keys

    def add_to(self, pipeline: Any, kept_s: int) -> None:
        """Add the commands that store them to `pipeline`."""
        for index, (name, *_) in enumerate(self.entries):
            key = partial(names.upload, self._front, self._request_id, index)
            put_parts(pipeline, key, self._uploads.data(name), kept_s)


def keys_of(front: str, request_id: str, entries: tuple[tuple[str, int, str], ...]) -> tuple[str, ...]:
    """Of all parts of all images."""
    return tuple(
        names.upload(front, request_id, index, part)
        for index, (_, size, digest) in enumerate(entries)
        for part in range(StoredPicture(size, digest).parts)
    )


def fetch(client: redis.Redis, document: JobDocument, index: int) -> bytes:
    """An image that a job reads. Raises RequestCancelled if it is gone, and ClusterMessageInvalid if it is not the one that
    was sent."""
    _, size, digest = document.uploads[index]
    stored = StoredPicture(size, digest)
    data = join_parts(client, partial(names.upload, document.front, document.request_id, index), stored)
    if data is None:
        raise RequestCancelled("The images of the request are gone.")
    if measured(data) != stored:
        raise ClusterMessageInvalid("An image of the request is not the one that was sent.")
    return data
