"""A process that waits for jobs which hosts draw: sends them, hears how they go, and sends them again if a host is gone."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import redis

from arbiter import flow_of
from cluster import names
from cluster.dispatcher import Dispatcher
from cluster.host_facts import HEARTBEAT_S, HostFacts, KnownHosts
from cluster.job_documents import JobDocument
from cluster.options import ClusterOptions
from cluster.placing import AssignedJob, WaitingJob, in_order, refusal_of
from cluster.redis_connection import connect, redis_errors
from cluster.sealing import Seal
from errors import ClusterMessageInvalid, EaselError, HostGone, NoHosts, ServerStopping

log = logging.getLogger("easel.cluster")
_HOSTS_AGE_S = 1.5
_FRONT_GONE_AFTER_S = 5
"""After which the jobs of a process that waited for them are given up"""
_NOT_BEGUN_S = 5.0
"""After which a job that a host with free engines has not begun counts as lost on its way"""
MAX_BEGUN = 3
"""Hosts that may be lost with one job: it may be the job"""
_CHECKING_S = 10.0
_MAX_UNSEEN = 3
_KEEP_S = 60
_KINDS = ("sent", "received", "begun", "waiting", "progress", "preview", "ended")
"""Of what hosts tell; that a job is lost, or that this process ends, is found out here"""
"""Of what belongs to a job, beyond its own time"""


@dataclass
class SentJob:
    """A job of this process. `inbox`: what its host tells, each with `job` and `kind`. `host`: the one that has it; None
    while it waits. `has_begun`: whether its engine has it. `failure`: the last host that failed with it, and how."""

    document: JobDocument
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
    failure: tuple[str, EaselError] | None = None

    @property
    def id(self) -> str:
        return self.document.id

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


@dataclass(frozen=True)
class Load:
    """`waiting`: model -> how many jobs no host has. `of_hosts`: host -> how many it draws, and how many it has besides."""

    waiting: Mapping[str, int]
    of_hosts: Mapping[str, tuple[int, int]]


class Front:
    """One per process; starts its threads when it is first used, so that it survives a fork. `send_task`: gives Celery a
    task: name, arguments, queue. `need_bytes`: the GPU memory that a model needs, 0 if that is not known."""

    def __init__(
        self,
        options: ClusterOptions,
        send_task: Callable[[str, list[Any], str], None],
        need_bytes: Callable[[str], int] = lambda model: 0,
    ) -> None:
        self.options, self.seal = options, Seal(options.key)
        self._send_task, self._need_bytes = send_task, need_bytes
        self._lock = threading.Lock()
        self._pid = 0
        self._start_error: EaselError | None = None
        self._start_failed_at = 0.0
        self._start()

    def _start(self) -> None:
        self.id = uuid.uuid4().hex
        self.client: redis.Redis = connect(self.options)
        self.hosts = KnownHosts(self.client, self.seal)
        self.dispatcher = Dispatcher(
            self.client, self.hosts, send=self._send, notify=self._notify, need_bytes=self._need_bytes
        )
        self._jobs: dict[str, SentJob] = {}
        self._ended: deque[tuple[SentJob, bool]] = deque()
        """Jobs that are to be removed from Redis"""
        self._hosts_read_at = 0.0
        self._wake = threading.Event()
        self._failed_at = -math.inf
        """When Redis was last found not to answer (monotonic)"""
        self.problem: EaselError | None = None
        """Why Redis cannot be used"""

    def _ensure_started(self) -> None:
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            if self._start_error is not None and time.monotonic() - self._start_failed_at < 1:
                raise self._start_error  # many requests would wait for the same, one after the other
            self._start()
            try:
                with redis_errors():
                    self.client.set(names.front(self.id), "1", ex=_FRONT_GONE_AFTER_S)
            except EaselError as error:
                self._start_error, self._start_failed_at = error, time.monotonic()
                raise
            self._pid = os.getpid()
            for name, run in (("cluster-look", self._look), ("cluster-listen", self._listen)):
                threading.Thread(target=run, name=name, daemon=True).start()

    # --- hosts -------------------------------------------------------------------------------------

    def known_hosts(self) -> Mapping[str, HostFacts]:
        """All that are there, by name, not older than about a second. Raises the errors of Redis."""
        self._ensure_started()
        if time.monotonic() - self._hosts_read_at > _HOSTS_AGE_S:
            self._read_hosts()
        return self.hosts.last

    def _read_hosts(self) -> None:
        try:
            self.hosts.read()
        except EaselError as error:
            self.problem = error
            raise
        self.problem, self._hosts_read_at = None, time.monotonic()

    def host_for(self, model: str, avoided: tuple[str, ...] = ()) -> HostFacts:
        """One that can draw a model. Waits a moment for a host that has just started and still finds out what it can draw.
        Raises NoHosts and the errors of Redis."""
        ends_at = time.monotonic() + _CHECKING_S
        while True:
            hosts = self.known_hosts()
            is_there = any(model in host.models for host in hosts.values())
            is_checking = any(host.is_checking for host in hosts.values())
            if is_there or not is_checking or time.monotonic() > ends_at:
                return self._host_for(model, avoided, hosts)
            time.sleep(0.1)

    def _host_for(self, model: str, avoided: tuple[str, ...], hosts: Mapping[str, HostFacts]) -> HostFacts:
        job = WaitingJob("", 0, model, "", "", avoided=avoided)
        able = [host for host in hosts.values() if refusal_of(host, job) is None]
        if able:
            return min(able, key=lambda host: (model not in host.loaded, host.name))
        if not hosts:
            raise NoHosts("No host is there: no `easel worker` runs with this Redis and key.")
        has_model = [host for host in hosts.values() if model in host.models]
        if not has_model:
            raise NoHosts(f"None of the hosts can draw {model}: {', '.join(sorted(hosts))}.", model=model)
        reasons = "; ".join(
            f"{host.name}: {refused.text}" for host in has_model if (refused := refusal_of(host, job))
        )
        raise NoHosts(f"No host can draw {model} now. {reasons}", model=model)

    def gone_hosts(self) -> tuple[str, ...]:
        """The names of those that were there and are no more."""
        return self.hosts.gone

    def load(self) -> Load:
        """The jobs of all hosts. Raises the errors of Redis."""
        self._ensure_started()
        situation = self.dispatcher.situation()
        jobs = Counter(each.host for each in situation.assigned)
        slots = {name: host.slots for name, host in situation.hosts.items()}
        return Load(
            Counter(job.model for job in situation.waiting),
            {
                host: (min(count, slots.get(host, 1)), max(0, count - slots.get(host, 1)))
                for host, count in jobs.items()
            },
        )

    def reports(self) -> list[dict[str, Any]]:
        """Of each host, as JSON: name, state (`ready`, `drained`, `down` or `gone`), problem, version (of Easel), comfyui,
        sketch, engines, running, waiting, models (how many), loaded_models, pictures_per_hour. Raises the errors of
        Redis."""
        known, load = self.known_hosts(), self.load()
        found = []
        for host in known.values():
            running, waiting = load.of_hosts.get(host.name, (0, 0))
            found.append(
                {
                    "name": host.name,
                    "state": host.state,
                    "problem": host.problem[1] or None,
                    "version": host.version,
                    "comfyui": host.comfyui,
                    "sketch": host.is_sketch,
                    "engines": host.slots,
                    "running": running,
                    "waiting": waiting,
                    "models": len(host.models),
                    "loaded_models": list(host.loaded),
                    "pictures_per_hour": host.pictures_per_hour,
                }
            )
        nothing: dict[str, Any] = {
            "version": "",
            "comfyui": "",
            "sketch": False,
            "engines": 0,
            "running": 0,
            "waiting": 0,
        }
        for name in self.gone_hosts():
            about: dict[str, Any] = {"name": name, "state": "gone", "problem": "it ended, or it is cut off"}
            found.append({**about, **nothing, "models": 0, "loaded_models": [], "pictures_per_hour": 0})
        return found

    def set_drained(self, name: str, is_drained: bool) -> bool:
        """Whether a host gets no new jobs, until that is changed; returns what it was. Raises the errors of Redis."""
        with redis_errors():
            was_drained = bool(self.client.exists(names.drained(name)))
            if is_drained:
                self.client.set(names.drained(name), "1")
            else:
                self.client.delete(names.drained(name))
        self._wake.set()
        return was_drained

    def seconds_until_free(self) -> int | None:
        """Not known: the hosts' queue is long or short for each model."""
        return None

    # --- jobs --------------------------------------------------------------------------------------

    def send(
        self, document: JobDocument, uploads: list[bytes], inbox: SimpleQueue[Mapping[str, Any]]
    ) -> SentJob:
        """Queue a job. Raises the errors of Redis."""
        self._ensure_started()
        document = replace(document, front=self.id)
        job = SentJob(document, 0, flow_of(document.sender.key), inbox)
        self._jobs[job.id] = job
        try:
            job.number = self._store(job, uploads)
            self.dispatcher.dispatch(job.waiting)
        except BaseException:
            self._jobs.pop(job.id, None)
            raise
        return job

    def _store(self, job: SentJob, uploads: list[bytes]) -> int:
        """The next number of a job."""
        kept_s = int(job.document.timeout_s) + _KEEP_S
        sealed = self.seal.close(names.job(job.id), job.document.as_json())
        with redis_errors():
            pipeline = self.client.pipeline(transaction=False)
            for index, data in enumerate(uploads):
                pipeline.set(names.upload(job.id, index), data, ex=kept_s)
            pipeline.set(names.job(job.id), sealed, ex=kept_s)
            pipeline.incr(names.NUMBER)
            return int(pipeline.execute()[-1])

    def send_again(self, job: SentJob, uploads: list[bytes]) -> None:
        """Another host is to draw it. Raises the errors of Redis."""
        before = job.attempt
        job.attempt += 1
        job.unseen = 0
        job.host, job.was_received, job.has_begun, job.missing = None, False, False, 0
        self._store(job, uploads)
        self.dispatcher.remove(job.id, before)
        with redis_errors():
            self.client.delete(names.result(job.id))
        self.dispatcher.dispatch(job.waiting)

    def end(self, job: SentJob, *, is_cancelled: bool) -> None:
        """Nobody waits for it any more. May be called again. Never raises."""
        if self._jobs.pop(job.id, None) is None:
            return
        # In the other thread: the client has its pictures, and need not wait for that.
        self._ended.append((job, is_cancelled))
        self._wake.set()

    def _clear(self, job: SentJob, *, is_cancelled: bool) -> None:
        keys = [names.job(job.id), names.result(job.id), names.last_event(job.id)]
        keys += [names.upload(job.id, index) for index in range(len(job.document.uploads))]
        keys += job.picture_keys
        with contextlib.suppress(EaselError):
            with redis_errors():
                pipeline = self.client.pipeline(transaction=False)
                if is_cancelled:
                    pipeline.set(names.cancelled(job.id), "1", ex=600)
                pipeline.delete(*keys)
                pipeline.execute()
            self.dispatcher.remove(job.id, job.attempt)

    def end_all(self, reason: EaselError) -> None:
        """The jobs of this process fail with `reason`, because it ends."""
        for job in list(self._jobs.values()):
            job.inbox.put({"kind": "stopped", "job": job.id, "reason": reason})

    def place_of(self, job: SentJob) -> int:
        """How many jobs wait before it, of all processes; 0 if that is not known."""
        with contextlib.suppress(EaselError):
            situation = self.dispatcher.situation()
            order = in_order(situation.waiting, situation.assigned, situation.turns)
            return next((index for index, each in enumerate(order) if each.id == job.id), 0)
        return 0

    # --- what the threads do -----------------------------------------------------------------------

    def _send(self, host: str, id: str, attempt: int) -> None:
        self._send_task(names.TASK, [id, attempt], names.queue(host))

    def _notify(self, sent: AssignedJob) -> None:
        front, host = sent.job.front, self.hosts.last.get(sent.host)
        event = {
            "kind": "sent",
            "job": sent.job.id,
            "attempt": sent.job.attempt,
            "host": sent.host,
            "instance": host.instance if host is not None else "",
        }
        if front == self.id:
            self._receive(event)
        else:
            channel = names.channel(front)
            self.client.publish(channel, self.seal.close(channel, event))

    def _listen(self) -> None:
        """Hear what hosts tell, for ever."""
        channel = names.channel(self.id)
        while True:
            try:
                with redis_errors(), contextlib.closing(self._pubsub()) as pubsub:
                    pubsub.subscribe(channel)
                    while True:
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
            self._receive(self.seal.open(channel, data))
        except ClusterMessageInvalid as error:
            log.warning("%s It is ignored.", error.message)

    def _receive(self, event: Mapping[str, Any]) -> None:
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

    def _look(self) -> None:
        """Once a second: say that this process is there, look after its jobs and send what waits; for ever."""
        next_beat_at = 0.0
        while True:
            try:
                now = time.monotonic()
                while self._ended:
                    job, is_cancelled = self._ended.popleft()
                    self._clear(job, is_cancelled=is_cancelled)
                if now >= next_beat_at:
                    next_beat_at = now + HEARTBEAT_S
                    self._beat()
                else:
                    self.dispatcher.dispatch()
            except EaselError as error:
                if self.problem is None or self.problem.code != error.code:
                    log.error("%s", error.message)
                self.problem, self._failed_at = error, time.monotonic()
            except Exception:
                log.exception("looking after the hosts failed; it goes on")
            self._wake.wait(max(0.05, next_beat_at - time.monotonic()))
            self._wake.clear()

    def _beat(self) -> None:
        with redis_errors():
            self.client.set(names.front(self.id), "1", ex=_FRONT_GONE_AFTER_S)
        if self.problem is not None:
            log.info("Redis answers again")
        self._read_hosts()
        self._look_after(list(self._jobs.values()))
        self.dispatcher.dispatch()

    def _look_after(self, jobs: list[SentJob]) -> None:
        """Find the jobs whose host is gone, whose end was not heard, and those that got lost on their way."""
        situation = self.dispatcher.situation()
        if not self._was_away_lately():
            self.dispatcher.forget_abandoned(situation)
        assigned = {each.job.id: each for each in situation.assigned}
        waiting = {each.id for each in situation.waiting}
        for each in (*situation.waiting, *(sent.job for sent in situation.assigned)):
            if each.front == self.id and each.id not in self._jobs:
                self.dispatcher.remove(each.id, each.attempt)  # its end was not heard
        if not jobs:
            return
        with redis_errors():
            results = self.client.mget([names.result(job.id) for job in jobs])
            last = self.client.mget([names.last_event(job.id) for job in jobs])
            pipeline = self.client.pipeline(transaction=False)
            for job in jobs:  # it may wait for longer than was thought
                pipeline.expire(names.job(job.id), int(job.document.timeout_s) + _KEEP_S)
                for index in range(len(job.document.uploads)):
                    pipeline.expire(names.upload(job.id, index), int(job.document.timeout_s) + _KEEP_S)
            pipeline.execute()
        for job, result, event in zip(jobs, results, last, strict=True):
            if isinstance(event, bytes):
                with contextlib.suppress(ClusterMessageInvalid):
                    self._mark(job, self.seal.open(names.last_event(job.id), event))
            if isinstance(result, bytes):
                with contextlib.suppress(ClusterMessageInvalid):
                    found = self.seal.open(names.result(job.id), result)
                    job.inbox.put({"kind": "ended", "job": job.id, "result": found})
                    continue
                with redis_errors():
                    self.client.delete(names.result(job.id))  # of nobody who has the key
            sent = assigned.get(job.id)
            if sent is not None and sent.job.attempt == job.attempt:
                self._look_at_host(job, sent)
            elif job.id in waiting:
                job.missing = 0
            else:
                job.missing += 1  # a result may have been taken at this moment
                if job.missing > 2:
                    job.inbox.put(
                        {"kind": "lost", "job": job.id, "attempt": job.attempt, "host": job.host or ""}
                    )

    def _mark(self, job: SentJob, event: Mapping[str, Any]) -> None:
        """The last event of a job, which this process may not have heard."""
        if event.get("attempt") == job.attempt:
            job.was_received = True
            job.has_begun = job.has_begun or event.get("kind") != "received"

    def _look_at_host(self, job: SentJob, sent: AssignedJob) -> None:
        job.missing = 0
        host = self.hosts.last.get(sent.host)
        if job.host is None:  # the message was not heard
            job.host, job.sent_at = sent.host, time.monotonic()
            job.instance = host.instance if host is not None else ""
        if host is None and self._was_away_lately():
            return  # its heartbeat ended with Redis; it has not said yet that it is there
        is_same = host is not None and host.instance == job.instance
        # One that stops takes no new job.
        is_leaving = host is not None and host.problem[0] == ServerStopping.code and not job.was_received
        if not is_same or is_leaving or self._is_lost(job, sent.host):
            job.inbox.put({"kind": "lost", "job": job.id, "attempt": job.attempt, "host": sent.host})

    def _is_lost(self, job: SentJob, host: str) -> bool:
        """Whether its task is neither with its host nor on its way there: whoever sent it ended before it could."""
        if job.was_received or time.monotonic() - job.sent_at < _NOT_BEGUN_S:
            return False
        with redis_errors():
            is_on_its_way = bool(self.client.llen(names.queue(host)))
        job.unseen = 0 if is_on_its_way else job.unseen + 1
        return job.unseen > _MAX_UNSEEN

    def _was_away_lately(self) -> bool:
        """Whether Redis did not answer a moment ago, so that heartbeats may be missing that were sent in vain."""
        return time.monotonic() - self._failed_at < _FRONT_GONE_AFTER_S


def gone(host: str) -> HostGone:
    """The error for a host that is no longer there."""
    name = host or "a host"
    return HostGone(f"{name} ended or was cut off while it had the job.", host=host)
