"""Looks whether a job that a host has is still wanted, and says meanwhile that the host has it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import redis

from cluster import names
from cluster.job_documents import JobDocument
from cluster.outages import Outages
from cluster.redis_connection import redis_errors
from errors import EaselError

_LOOK_S = 0.3
"""Between two looks whether the job is still wanted"""
_HOLD_S = 1.0
"""Between two times that the host says that it has the job"""
HELD_S = 5
"""So long each of them counts"""
_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
return 0"""
"""Deletes a key if it still has this value: another host may have the job by now"""


class JobWatch:
    """Looks in a thread whether a job is still wanted: nobody has cancelled it, who waits for it is there, and no other host
    was given it. While it is, and this process lives, `names.held` has the attempt: whoever waits knows that it is not
    lost."""

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
        self._outages = Outages()
        self._next_hold_at = 0.0
        self._thread = threading.Thread(target=self._run, name="job-watch", daemon=True)

    def __enter__(self) -> JobWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(EaselError), redis_errors():
            self._client.eval(_RELEASE, 1, names.held(self._document.id), str(self._attempt))

    def is_unwanted(self) -> bool:
        return bool(self.reason)

    def _run(self) -> None:
        with contextlib.suppress(EaselError), redis_errors():
            self._hold()
        self._begin()
        while not self._ended.wait(_LOOK_S):
            try:
                with redis_errors():
                    self._look()
                    if self.reason:
                        return
                    if time.monotonic() >= self._next_hold_at:
                        self._hold()
            except EaselError:
                self._outages.failed()

    def _hold(self) -> None:
        self._client.set(names.held(self._document.id), str(self._attempt), ex=HELD_S)
        self._next_hold_at = time.monotonic() + _HOLD_S

    def _look(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.exists(names.cancelled(self._document.id))
        pipeline.exists(names.front(self._document.front))
        pipeline.hget(names.ASSIGNED, self._document.id)
        is_cancelled, has_front, assigned = pipeline.execute()
        # What is missing may have ended with Redis, and its process had no time yet to say that it is there.
        is_sure = not self._outages.were_lately()
        self._outages.answered()
        if is_cancelled:
            self.reason = "it was cancelled"
        elif not has_front and is_sure:
            self.reason = "the process that waited for it has ended"
        elif assigned is None and is_sure:
            self.reason = "nobody waits for it any more"
        elif assigned is not None and _attempt_of(assigned) not in (None, self._attempt):
            self.reason = "another host has it"


def _attempt_of(assigned: bytes) -> Any:
    """None if somebody has written there what has not the form of an entry."""
    try:
        return json.loads(assigned)["attempt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
