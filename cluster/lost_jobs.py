"""Looks after the jobs of this process: finds those whose host is gone or has lost them, whose end was not heard, and
that got lost on their way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis

from cluster import names
from cluster.abandoned import AbandonedJobs
from cluster.dispatcher import Dispatcher
from cluster.host_facts import HostFacts, KnownHosts
from cluster.placing import AssignedJob, Situation, in_order
from cluster.redis_connection import answers_of, redis_errors
from cluster.sealing import Seal
from cluster.sent_jobs import SentJob, SentJobs
from errors import ClusterMessageInvalid, ServerStopping

_NOT_BEGUN_S = 5.0
"""After which a job that a host with free engines has not begun counts as lost on its way"""
_MAX_UNSEEN = 3
_MAX_MISSING = 2
_MAX_UNHELD = 3
_KEEP_AGAIN_S = 20.0
"""Far below what the time of a job is exceeded by, when it is stored"""


class LostJobs:
    """What it finds it puts into the inbox of the job. `was_away_lately`: whether Redis did not answer a moment ago, so that
    heartbeats may be missing that were sent in vain."""

    def __init__(
        self,
        client: redis.Redis,
        seal: Seal,
        hosts: KnownHosts,
        dispatcher: Dispatcher,
        jobs: SentJobs,
        was_away_lately: Callable[[], bool],
    ) -> None:
        self._client, self._seal, self._hosts = client, seal, hosts
        self._dispatcher, self._jobs = dispatcher, jobs
        self._abandoned = AbandonedJobs(client, seal, dispatcher)
        self._was_away_lately = was_away_lately
        self._kept_at = -math.inf

    def look(self) -> None:
        """Once a second. Raises the errors of Redis."""
        jobs = self._jobs.all()
        situation = self._dispatcher.situation()
        self._jobs.order_was_read(in_order(situation.waiting, situation.assigned, situation.turns))
        if not self._was_away_lately():
            self._abandoned.forget(situation)
        self._remove_ended(situation)
        if not jobs:
            return
        if time.monotonic() - self._kept_at > _KEEP_AGAIN_S:
            self._keep(jobs)
            self._kept_at = time.monotonic()
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            for name in (names.result, names.last_event, names.held):
                pipeline.mget([name(job.id) for job in jobs])
            pipeline.mget([names.held(each.job.id) for each in situation.assigned] or [names.held("")])
            results, last, held, all_held = pipeline.execute()
        busy = {sent.host for sent, holder in zip(situation.assigned, all_held, strict=False) if holder}
        assigned = {each.job.id: each for each in situation.assigned}
        waiting = {each.id for each in situation.waiting}
        for job, result, event, holder in zip(jobs, results, last, held, strict=True):
            self._mark(job, event)
            if self._has_result(job, result):
                continue
            sent = assigned.get(job.id)
            if sent is not None and sent.job.attempt == job.attempt:
                is_held = holder == str(job.attempt).encode()
                self._look_at_host(job, sent, is_held=is_held, is_busy=sent.host in busy)
            elif job.id in waiting:
                job.missing = 0
            else:
                job.missing += 1  # a result may have been taken at this moment
                if job.missing > _MAX_MISSING:
                    _tell_lost(job, job.host or "")

    def _remove_ended(self, situation: Situation) -> None:
        """Those whose end was not heard by whoever has put them back into the queue."""
        for each in (*situation.waiting, *(sent.job for sent in situation.assigned)):
            if each.front == self._jobs.front and each.id not in self._jobs:
                self._dispatcher.remove(each.id, each.attempt)

    def _keep(self, jobs: list[SentJob]) -> None:
        """They may wait for longer than was thought when they were stored."""
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            kept_s: dict[str, int] = {}
            for job in jobs:
                for key in (names.job(job.id), *job.images.keys):
                    kept_s[key] = max(job.kept_s, kept_s.get(key, 0))
            for key, seconds in kept_s.items():
                pipeline.expire(key, seconds)
            pipeline.execute()

    def _mark(self, job: SentJob, data: Any) -> None:
        """The last event of a job, which this process may not have heard."""
        if not isinstance(data, bytes):
            return
        with contextlib.suppress(ClusterMessageInvalid):
            event = self._seal.open(names.last_event(job.id), data)
            if event.get("attempt") == job.attempt:
                job.was_received = True
                job.has_begun = job.has_begun or event.get("kind") != "received"

    def _has_result(self, job: SentJob, data: Any) -> bool:
        """Whether it has ended, which this process may not have heard."""
        if not isinstance(data, bytes):
            return False
        try:
            found: Mapping[str, Any] = self._seal.open(names.result(job.id), data)
        except ClusterMessageInvalid:
            with redis_errors():
                self._client.delete(names.result(job.id))  # of nobody who has the key
            return False
        job.inbox.put({"kind": "ended", "job": job.id, "result": found})
        return True

    def _look_at_host(self, job: SentJob, sent: AssignedJob, *, is_held: bool, is_busy: bool) -> None:
        """`is_busy`: whether a process of the host has any job."""
        job.missing = 0
        host = self._hosts.last.get(sent.host)
        if job.host is None:  # the message was not heard
            job.host, job.sent_at = sent.host, time.monotonic()
            job.instance = host.instance if host is not None else ""
        if host is None and self._was_away_lately():
            return  # its heartbeat ended with Redis; it has not said yet that it is there
        if host is None or host.instance != job.instance:
            _tell_lost(job, sent.host)
            return
        # One that stops takes no new job.
        is_leaving = host.problem[0] == ServerStopping.code and not job.was_received
        if is_leaving:
            _tell_lost(job, sent.host)
        elif self._is_dropped(job, host, is_held=is_held):
            _tell_lost(job, sent.host, by_host=True)
        else:
            self._look_whether_taken(job, host, is_busy=is_busy)

    def _look_whether_taken(self, job: SentJob, host: HostFacts, *, is_busy: bool) -> None:
        """Whether its task is with its host or on its way there: who sent it may have ended before it could, and the process
        that would take it may be stopped."""
        if job.was_received or time.monotonic() - job.sent_at < _NOT_BEGUN_S:
            return
        with redis_errors():
            (queued,) = answers_of(self._client.pipeline(transaction=False).llen(names.queue(host.name)))
        is_queued = bool(queued) and not isinstance(queued, Exception)
        job.unseen = 0 if is_queued and (is_busy or not host.holds) else job.unseen + 1
        if job.unseen > _MAX_UNSEEN:
            _tell_lost(job, host.name, by_host=True, is_queued=is_queued)

    def _is_dropped(self, job: SentJob, host: HostFacts, *, is_held: bool) -> bool:
        """Whether its host, which had taken it, has no process that goes on with it: the one that had it was killed or
        stopped, and Celery has not given the job to another one."""
        if is_held or not job.was_received or not host.holds or self._was_away_lately():
            job.unheld = 0
            return False
        job.unheld += 1
        return job.unheld > _MAX_UNHELD


def _tell_lost(job: SentJob, host: str, *, by_host: bool = False, is_queued: bool = False) -> None:
    """`by_host`: the host is there, and does not go on with it. `is_queued`: it may yet, because it has the task."""
    event = {"kind": "lost", "job": job.id, "attempt": job.attempt, "host": host}
    job.inbox.put({**event, "by_host": by_host, "is_queued": is_queued})
