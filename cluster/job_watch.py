"""Looks whether a job that a host draws is still wanted."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable

import redis

from cluster import names
from cluster.job_documents import JobDocument
from cluster.redis_connection import redis_errors
from errors import EaselError

_LOOK_S = 0.3
"""Between two looks whether the job is still wanted"""
_SURE_AFTER_S = 5.0
"""After Redis was away"""


class JobWatch:
    """Looks in a thread whether a job is still wanted: nobody has cancelled it, who waits for it is there, and no other host
    was given it."""

    def __init__(
        self,
        client: redis.Redis,
        document: JobDocument,
        host: str,
        attempt: int,
        begin: Callable[[], None],
    ) -> None:
        """`begin`: called first in the thread."""
        self._client, self._document, self._host, self._attempt = client, document, host, attempt
        self._begin = begin
        self._ended, self.reason = threading.Event(), ""
        self._failed_at = -math.inf
        self._thread = threading.Thread(target=self._run, name="job-watch", daemon=True)

    def __enter__(self) -> JobWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def is_unwanted(self) -> bool:
        return bool(self.reason)

    def _run(self) -> None:
        self._begin()
        while not self._ended.wait(_LOOK_S):
            try:
                with redis_errors():
                    self._look()
            except EaselError:
                self._failed_at = time.monotonic()
            if self.reason:
                return

    def _look(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.exists(names.cancelled(self._document.id))
        pipeline.exists(names.front(self._document.front))
        pipeline.hget(names.ASSIGNED, self._document.id)
        is_cancelled, has_front, assigned = pipeline.execute()
        # What is missing may have ended with Redis, and its process had no time yet to say that it is there.
        is_sure = time.monotonic() - self._failed_at > _SURE_AFTER_S
        if is_cancelled:
            self.reason = "it was cancelled"
        elif not has_front and is_sure:
            self.reason = "the process that waited for it has ended"
        elif assigned is None and is_sure:
            self.reason = "nobody waits for it any more"
        elif assigned is not None and json.loads(assigned).get("attempt") != self._attempt:
            self.reason = "another host has it"
