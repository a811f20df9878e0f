"""The jobs of this process that hosts draw: stored in Redis, queued, and removed when they have ended."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import redis

from arbiter import flow_of
from cluster import names
from cluster.dispatcher import Dispatcher
from cluster.input_images import InputImages
from cluster.job_documents import JobDocument
from cluster.placing import WaitingJob
from cluster.redis_connection import redis_errors
from cluster.sealing import Seal
from errors import EaselError

_KINDS = ("sent", "received", "begun", "waiting", "progress", "preview", "ended")
"""Of what hosts tell; that a job is lost, or that this process ends, is found out here"""
_KEEP_S = 60
"""How long what belongs to a job is kept beyond its own time"""
_CANCELLED_KEPT_S = 600


@dataclass
class SentJob:
    """A job of this process. `inbox`: what its host tells, each with `job` and `kind`. `host`: the one that has it; None
    while it waits. `has_begun`: whether its engine has it. `failure`: the last host that failed with it, and how."""

    document: JobDocument
    images: InputImages
    number: int
    flow: str
    inbox: SimpleQueue[Mapping[str, Any]]
    attempt: int = 1
    avoided: tuple[str, ...] = ()
    host: str | None = None
    instance: str = ""
    sent_at: float = 0.0
    was_received: bool = False
    has_begun: bool = False
    begun: int = 0
    """How many hosts were lost that had begun it"""
    picture_keys: tuple[str, ...] = ()
    """Of its pictures, which were fetched"""
    unseen: int = 0
    """In how many looks its host had not taken it, and its task was in no queue"""
    missing: int = 0
    """In how many looks it was found nowhere"""
    unheld: int = 0
    """In how many looks no process of its host had it, which had taken it"""
    failure: tuple[str, EaselError] | None = None

    @property
    def id(self) -> str:
        return self.document.id

    @property
    def kept_s(self) -> int:
        """How long what belongs to it is kept, in whole seconds, unless that is asked for again."""
        return int(self.document.timeout_s) + _KEEP_S

    @property
    def waiting(self) -> WaitingJob:
        return WaitingJob(
            self.id,
            self.number,
            self.document.compiled.plan.model,
            self.flow,
            self.document.front,
            self.attempt,
            self.avoided,
        )


class SentJobs:
    """Thread-safe. `front`: the id of this process. `wake`: has `clear_ended` called soon."""

    def __init__(
        self,
        front: str,
        client: redis.Redis,
        seal: Seal,
        dispatcher: Dispatcher,
        wake: Callable[[], None],
    ) -> None:
        self.front = front
        self._client, self._seal, self._dispatcher, self._wake = client, seal, dispatcher, wake
        self._jobs: dict[str, SentJob] = {}
        self._ended: deque[tuple[SentJob, bool]] = deque()
        """Jobs that are to be removed from Redis"""
        self._places: Mapping[str, int] = {}

    def all(self) -> list[SentJob]:
        """Those that have not ended."""
        return list(self._jobs.values())

    def __contains__(self, id: str) -> bool:
        return id in self._jobs

    def send(
        self, document: JobDocument, images: InputImages, inbox: SimpleQueue[Mapping[str, Any]]
    ) -> SentJob:
        """Queue a job. `images`: those of its request. Raises the errors of Redis."""
        job = SentJob(document, images, 0, flow_of(document.sender.key), inbox)
        self._jobs[job.id] = job
        try:
            job.number = self._store(job)
            self._dispatcher.dispatch(job.waiting)
        except BaseException:
            self.end(job, is_cancelled=True)
            raise
        return job

    def _store(self, job: SentJob) -> int:
        """With the images of its request, if they are not there. Returns the next number of a job."""
        sealed = self._seal.close(names.job(job.id), job.document.as_json())
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            if not job.images.is_stored:
                job.images.add_to(pipeline, job.kept_s)
            pipeline.set(names.job(job.id), sealed, ex=job.kept_s)
            pipeline.sadd(names.jobs_of(self.front), job.id)
            pipeline.incr(names.NUMBER)
            number = int(pipeline.execute()[-1])
        job.images.is_stored = True
        return number

    def send_again(self, job: SentJob) -> None:
        """Another host is to draw it. Raises the errors of Redis."""
        before = job.attempt
        job.attempt += 1
        job.host, job.was_received, job.has_begun = None, False, False
        job.unseen = job.missing = job.unheld = 0
        with redis_errors():
            job.images.is_stored = self._are_there(job.images)
        self._store(job)
        self._dispatcher.remove(job.id, before)
        with redis_errors():
            self._client.delete(names.result(job.id))
        self._dispatcher.dispatch(job.waiting)

    def _are_there(self, images: InputImages) -> bool:
        return not images.keys or self._client.exists(*images.keys) == len(images.keys)

    def end(self, job: SentJob, *, is_cancelled: bool) -> None:
        """Nobody waits for it any more. May be called again. Never raises."""
        if self._jobs.pop(job.id, None) is None:
            return
        # In the other thread: the client has its pictures, and need not wait for that.
        self._ended.append((job, is_cancelled))
        self._wake()

    def clear_ended(self) -> None:
        """Remove from Redis what belongs to jobs that have ended. Never raises."""
        while self._ended:
            job, is_cancelled = self._ended.popleft()
            self._clear(job, is_cancelled=is_cancelled)

    def _clear(self, job: SentJob, *, is_cancelled: bool) -> None:
        keys = [names.job(job.id), names.result(job.id), names.last_event(job.id)]
        keys += job.picture_keys
        if not any(other.images is job.images for other in self.all()):
            keys += job.images.keys
        with contextlib.suppress(EaselError):
            with redis_errors():
                pipeline = self._client.pipeline(transaction=False)
                if is_cancelled:
                    pipeline.set(names.cancelled(job.id), "1", ex=_CANCELLED_KEPT_S)
                pipeline.delete(*keys)
                pipeline.srem(names.jobs_of(self.front), job.id)
                pipeline.execute()
            self._dispatcher.remove(job.id, job.attempt)

    def end_all(self, reason: EaselError) -> None:
        """The jobs of this process fail with `reason`, because it ends."""
        for job in self.all():
            job.inbox.put({"kind": "stopped", "job": job.id, "reason": reason})

    def place_of(self, job: SentJob) -> int:
        """How many jobs waited before it, of all processes, when `order_was_read` was called last; 0 if that is not
        known."""
        return self._places.get(job.id, 0)

    def order_was_read(self, order: Iterable[WaitingJob]) -> None:
        """`order`: all waiting jobs. Each waiting client asks for its place once a second: Redis is asked once for all."""
        self._places = {job.id: place for place, job in enumerate(order)}

    def receive(self, event: Mapping[str, Any]) -> None:
        """What a host, or whoever sent a job to one, tells about it. For no job of this process it is ignored."""
        job = self._jobs.get(str(event.get("job")))
        if job is None:
            return
        kind = event.get("kind")
        if kind not in _KINDS:
            return
        if kind != "ended" and event.get("attempt") != job.attempt:
            return  # of a host that was given up
        if kind == "sent":
            job.host, job.instance = str(event.get("host")), str(event.get("instance"))
            job.sent_at = time.monotonic()
        elif kind == "received":
            job.was_received = True
        elif kind == "begun":
            job.was_received = job.has_begun = True
        job.inbox.put(event)
