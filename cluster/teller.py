"""Tells the process that waits for a job how it goes on its host."""

from __future__ import annotations

import contextlib
import time
from base64 import b64encode
from typing import Any

import redis

from arbiter import Waiting
from cluster import names
from cluster.job_documents import JobDocument
from cluster.redis_connection import redis_errors
from cluster.sealing import Seal
from engine import Preview, Progress
from errors import EaselError

_PROGRESS_S = 0.1
_PREVIEW_S = 0.02
"""Between two of each that are sent: Redis must carry them. Whoever waits counts the previews to choose among them, so that
only those of very fast steps are left out"""
_EVENT_KEPT_S = 120


class Teller:
    """Of one job. A Redis that is away is told nothing."""

    def __init__(self, client: redis.Redis, seal: Seal, document: JobDocument, attempt: int) -> None:
        self._client, self._seal, self._attempt = client, seal, attempt
        self._job, self._channel = document.id, names.channel(document.front)
        self._sent_at: dict[str, float] = {}
        self.has_begun = False

    def __call__(self, kind: str, **values: Any) -> None:
        if kind == "begun":
            self.has_begun = True
        event = {"kind": kind, "job": self._job, "attempt": self._attempt, **values}
        with contextlib.suppress(EaselError), redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            if kind in ("received", "begun"):
                key = names.last_event(self._job)
                pipeline.set(key, self._seal.close(key, event), ex=_EVENT_KEPT_S)
            pipeline.publish(self._channel, self._seal.close(self._channel, event))
            pipeline.execute()

    def progress(self, event: Progress | Preview) -> None:
        if not self.has_begun:
            self("begun")
        if isinstance(event, Progress):
            if self._may_send("progress", _PROGRESS_S) or event.value == event.maximum:
                self("progress", node=event.node, value=event.value, maximum=event.maximum)
        elif self._may_send("preview", _PREVIEW_S):
            self("preview", node=event.node, mime=event.mime, data=b64encode(event.data).decode())

    def waiting(self, waiting: Waiting) -> None:
        self(
            "waiting",
            waits_for=waiting.waits_for,
            reason=dict(waiting.reason),
            waited_s=waiting.waited_s,
            expected_s=waiting.expected_s,
            place=waiting.place,
        )

    def _may_send(self, kind: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now - self._sent_at.get(kind, 0.0) < interval_s:
            return False
        self._sent_at[kind] = now
        return True
