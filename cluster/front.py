"""A process that waits for jobs which hosts draw: puts its parts together, and runs the two threads that serve them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import redis

from cluster import names
from cluster.dispatcher import Dispatcher
from cluster.host_facts import HEARTBEAT_S, KnownHosts
from cluster.host_list import HostList
from cluster.lost_jobs import LostJobs
from cluster.options import ClusterOptions
from cluster.outages import Outages
from cluster.placing import AssignedJob
from cluster.redis_connection import connect, redis_errors
from cluster.sealing import Seal
from cluster.sent_jobs import SentJobs
from errors import ClusterMessageInvalid, EaselError

log = logging.getLogger("easel.cluster")
_FRONT_GONE_AFTER_S = 5
"""After which the jobs of a process that waited for them are given up"""
_FORGET_EACH_S = 60.0
"""Between two looks for hosts that are not there any more"""
_MAX_LOGGED_CHARS = 300
_MAX_LOGGED = 100
"""Somebody may have written any names into Redis"""


class Front:
    """One per process; starts its threads when it is first used, so that it survives a fork. `send_task`: gives Celery a
    task: name, arguments, queue. `need_bytes`: the GPU memory that a model needs, 0 if that is not known."""

    def __init__(
        self,
        options: ClusterOptions,
        send_task: Callable[[str, list[Any], str], None],
        need_bytes: Callable[[str], int] = lambda model: 0,
    ) -> None:
        self._send_task, self._seal = send_task, Seal(options.key)
        # Its connections are made anew in each process.
        self.client: redis.Redis = connect(options)
        self._known = KnownHosts(self.client, self._seal)
        self._dispatcher = Dispatcher(
            self.client, self._known, send=self._send, notify=self._notify, need_bytes=need_bytes
        )
        self.hosts = HostList(
            self.client,
            self._known,
            self._dispatcher,
            start=self._ensure_started,
            wake=self._wake_up,
            was_away_lately=self._was_away_lately,
        )
        self._lock = threading.Lock()
        self._pid = 0
        self._start_error: EaselError | None = None
        self._start_failed_at = 0.0
        self._begin()

    def _begin(self) -> None:
        """What belongs to this process alone."""
        self._wake, self._is_closed = threading.Event(), threading.Event()
        self._jobs = SentJobs(uuid.uuid4().hex, self.client, self._seal, self._dispatcher, self._wake_up)
        self._lost_jobs = LostJobs(
            *(self.client, self._seal, self._known, self._dispatcher, self._jobs, self._was_away_lately)
        )
        self._outages = Outages()
        self._problem: EaselError | None = None
        """Why Redis cannot be used"""
        self._forgot_at = -math.inf
        self._logged = set[str]()
        """Hosts whose heartbeat cannot be used"""

    @property
    def jobs(self) -> SentJobs:
        """Those of this process. Raises the errors of Redis if it was not used yet and cannot be."""
        self._ensure_started()
        return self._jobs

    def end_all(self, reason: EaselError) -> None:
        """The jobs of this process fail with `reason`, because it ends."""
        self._jobs.end_all(reason)

    def close(self) -> None:
        """Its threads end soon."""
        self._is_closed.set()
        self._wake.set()

    def seconds_until_free(self) -> int | None:
        """Not known: the hosts' queue is long or short for each model."""
        return None

    def _ensure_started(self) -> None:
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            if self._start_error is not None and time.monotonic() - self._start_failed_at < 1:
                raise self._start_error  # many requests would wait for the same, one after the other
            self._begin()
            try:
                self._say_that_it_is_there()
            except EaselError as error:
                self._start_error, self._start_failed_at = error, time.monotonic()
                raise
            self._pid = os.getpid()
            for name, run in (("cluster-look", self._look), ("cluster-listen", self._listen)):
                threading.Thread(target=run, name=name, daemon=True).start()

    def _say_that_it_is_there(self) -> None:
        with redis_errors():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.sadd(names.FRONTS, self._jobs.front)
            pipeline.set(names.front(self._jobs.front), "1", ex=_FRONT_GONE_AFTER_S)
            pipeline.execute()

    def _wake_up(self) -> None:
        self._wake.set()

    def _was_away_lately(self) -> bool:
        return self._outages.were_lately()

    # --- for the dispatcher ------------------------------------------------------------------------

    def _send(self, host: str, id: str, attempt: int) -> None:
        self._send_task(names.TASK, [id, attempt], names.queue(host))

    def _notify(self, sent: AssignedJob) -> None:
        front, host = sent.job.front, self._known.last.get(sent.host)
        event = {
            "kind": "sent",
            "job": sent.job.id,
            "attempt": sent.job.attempt,
            "host": sent.host,
            "instance": host.instance if host is not None else "",
        }
        if front == self._jobs.front:
            self._jobs.receive(event)
        else:
            channel = names.channel(front)
            self.client.publish(channel, self._seal.close(channel, event))

    # --- the thread that listens -------------------------------------------------------------------

    def _listen(self) -> None:
        """Hear what hosts tell."""
        channel = names.channel(self._jobs.front)
        while not self._is_closed.is_set():
            try:
                with redis_errors(), contextlib.closing(self._pubsub()) as pubsub:
                    pubsub.subscribe(channel)
                    while not self._is_closed.is_set():
                        message = pubsub.get_message(ignore_subscribe_messages=True, timeout=2.0)
                        if message is not None:
                            self._hear(channel, message["data"])
            except EaselError:
                time.sleep(0.5)  # the other thread says so in the log
            except Exception:
                log.exception("hearing of the hosts failed; it goes on")
                time.sleep(0.5)

    def _pubsub(self) -> Any:
        return self.client.pubsub()  # type: ignore[no-untyped-call]

    def _hear(self, channel: str, data: Any) -> None:
        try:
            self._jobs.receive(self._seal.open(channel, data))
        except ClusterMessageInvalid as error:
            log.warning("%s It is ignored.", names.shown(error.message, _MAX_LOGGED_CHARS))

    # --- the thread that looks ---------------------------------------------------------------------

    def _look(self) -> None:
        """Once a second: say that this process is there, look after its jobs and send what waits."""
        next_beat_at = 0.0
        while not self._is_closed.is_set():
            try:
                self._jobs.clear_ended()
                now = time.monotonic()
                if now >= next_beat_at:
                    next_beat_at = now + HEARTBEAT_S
                    self._beat()
                else:
                    self._dispatcher.dispatch()
            except EaselError as error:
                if self._problem is None or self._problem.code != error.code:
                    log.error("%s", error.message)
                self._problem = error
                self._outages.failed()
            except Exception:
                log.exception("looking after the hosts failed; it goes on")
            self._wake.wait(max(0.05, next_beat_at - time.monotonic()))
            self._wake.clear()

    def _log_unreadable(self) -> None:
        """Once for each host."""
        for name, text in self.hosts.unreadable_hosts().items():
            if name not in self._logged and len(self._logged) < _MAX_LOGGED:
                self._logged.add(name)
                log.warning("%s It draws nothing for this machine.", names.shown(text, _MAX_LOGGED_CHARS))

    def _beat(self) -> None:
        self._say_that_it_is_there()
        self._outages.answered()
        self._known.read()
        self._log_unreadable()
        self._lost_jobs.look()
        if time.monotonic() - self._forgot_at > _FORGET_EACH_S:
            self._forgot_at = time.monotonic()
            self._known.forget_gone()
        self._dispatcher.dispatch()
        if self._problem is not None:
            log.info("Redis answers again")
        self._problem = None
