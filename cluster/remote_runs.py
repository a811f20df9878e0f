"""Runs the jobs of one request on other hosts."""

from __future__ import annotations

import contextlib
import logging
from base64 import b64decode
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from arbiter import Arbiter, Lease, Sender, Waiting, because, pictures_before
from cluster import picture_parts
from cluster.front import Front
from cluster.host_facts import HostFacts
from cluster.input_images import InputImages
from cluster.job_documents import JobDocument, ResultDocument
from cluster.picture_parts import StoredPicture
from cluster.redis_connection import redis_errors
from cluster.sent_jobs import SentJob
from compiler import Compiled
from compiler.values import Nodes
from engine import Preview, Progress
from errors import (
    ClusterMessageInvalid,
    ClusterPictureLost,
    EaselError,
    HostGone,
    NoHosts,
    RequestCancelled,
    ServerStopping,
)
from generation import DrawingRecord, JobCallbacks, JobResult, RequestedJobs

log = logging.getLogger("easel.cluster")
_POLL_S = 0.25
_WAIT_REPORT_S = 1.0
_MAX_BEGUN = 3
"""Hosts that may be lost with one job: it may be the job"""
_MAX_TRIES = 10
"""Of one job, whatever the reasons"""


@dataclass(frozen=True)
class RemoteSession:
    """A host as it draws a job. `result`: None before it has drawn."""

    host: HostFacts
    result: ResultDocument | None = None

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def uses_gpu(self) -> bool:
        return self.result is None or self.result.uses_gpu

    @property
    def is_sketch(self) -> bool:
        return self.host.is_sketch if self.result is None else self.result.is_sketch

    def saving_nodes(self, job: int) -> Nodes:
        return (self.result.nodes if self.result is not None else None) or {}

    def erase_uploads(self) -> None:
        """The host has done it."""


class ClusterHosts:
    """All hosts, as the generator uses them; see `generation.Hosts`. `requests`: lists the requests of this host,
    and cancels them."""

    def __init__(self, front: Front, requests: Arbiter, clock: Callable[[], float]) -> None:
        self.front, self._requests, self._clock = front, requests, clock

    def runs(self, requested: RequestedJobs) -> RemoteRuns:
        return RemoteRuns(self.front, self._requests, requested, self._clock)

    def seconds_until_free(self) -> int | None:
        return self.front.seconds_until_free()


class RemoteRuns:
    """Of one request; see `generation.Runs`."""

    def __init__(
        self,
        front: Front,
        requests: Arbiter,
        requested: RequestedJobs,
        clock: Callable[[], float],
    ) -> None:
        self._front, self._requests = front, requests
        self._requested, self._compiled = requested, requested.compiled
        self._time_left, self._clock = requested.time_left, clock
        self.counts_waiting = True
        """Whether the time in which it waits for the GPU is a part of its own"""
        self._inbox: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self._sessions: list[RemoteSession] = []
        self._results: dict[str, JobResult] = {}
        self._done: set[str] = set()
        """Jobs that have ended; their end may be told twice, and their pictures are gone then"""

    @property
    def names_engines(self) -> bool:
        return True

    @property
    def sessions(self) -> Sequence[RemoteSession]:
        return tuple(self._sessions)

    def prepare(self, job: str) -> RemoteSession:
        """A host that can draw it now. Raises NoHosts and the errors of Redis."""
        return RemoteSession(self._front.hosts.host_for(self._compiled.plan.model))

    def results(
        self,
        jobs: Sequence[str],
        callbacks: JobCallbacks,
        record: DrawingRecord,
        *,
        previews: bool,
        sender: Sender,
        prompt: str,
    ) -> Generator[JobResult, None, None]:
        """Send all jobs; yields the results in their order. Raises what the hosts report, NoHosts, HostGone,
        RequestCancelled, JobTimedOut and the errors of Redis."""
        images = InputImages(self._front.jobs.front, self._requested.id, self._requested.uploads)
        sent: dict[str, SentJob] = {}
        began_at = self._clock()
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                self._requests.listed(
                    self._requested.id,
                    model=self._compiled.plan.model,
                    jobs=jobs,
                    sender=sender,
                    uses_gpu=False,
                    prompt=prompt,
                )
            )
            stack.callback(self._end, sent)
            for index, job in enumerate(jobs):
                document = self._document(index, job, images, previews, sender, prompt)
                sent[job] = self._front.jobs.send(document, images, self._inbox)
            callbacks.on_submitted()
            for index, job in enumerate(jobs):
                self._wait_for(job, sent, callbacks, began_at)
                result = self._results.pop(job)
                self._record(record, result, index, began_at)
                yield result

    def _end(self, sent: Mapping[str, SentJob]) -> None:
        for job in sent.values():
            self._front.jobs.end(job, is_cancelled=True)

    def _document(
        self, index: int, job: str, images: InputImages, previews: bool, sender: Sender, prompt: str
    ) -> JobDocument:
        graph = self._compiled.graphs[index]
        plan = replace(self._compiled.plan, jobs=(graph.job,))
        return JobDocument(
            id=job,
            request_id=self._requested.id,
            front=self._front.jobs.front,
            compiled=Compiled(plan, (graph,)),
            uploads=images.entries,
            timeout_s=self._time_left.seconds(),
            counts_waiting=self.counts_waiting,
            previews=previews,
            sender=sender,
            prompt=prompt,
        )

    # --- waiting -----------------------------------------------------------------------------------

    def _wait_for(
        self, wanted: str, sent: dict[str, SentJob], callbacks: JobCallbacks, began_at: float
    ) -> None:
        """Until the job has ended. What the others tell meanwhile is handled too."""
        # The GPU is leased on the other host. Here the lease only says that the job can be cancelled, and how far it is.
        timeout_s = self._time_left.seconds()
        with self._requests.lease(
            "generation", job=wanted, timeout_s=timeout_s, uses_gpu=False, cancelled=callbacks.cancelled
        ) as lease:
            self._follow(wanted, sent, _with_lease(callbacks, lease), began_at)

    def _follow(
        self, wanted: str, sent: dict[str, SentJob], callbacks: JobCallbacks, began_at: float
    ) -> None:
        told_at, has_begun = self._clock(), False
        while wanted not in self._results:
            if callbacks.cancelled():
                raise RequestCancelled("The caller cancelled the request.")
            job = sent[wanted]
            waited_from = self._clock()
            if self.counts_waiting or job.has_begun:
                self._time_left.seconds()  # raises if there is none
            try:
                event: Mapping[str, Any] | None = self._inbox.get(timeout=_POLL_S)
            except Empty:
                event = None
            if not self.counts_waiting and not job.has_begun:
                self._time_left.extend(self._clock() - waited_from)
            if event is not None:
                self._handle(event, sent, wanted, callbacks)
            if job.has_begun and not has_begun:
                has_begun = True
                callbacks.on_run()
            if not job.has_begun and not job.was_received and self._clock() - told_at >= _WAIT_REPORT_S:
                told_at = self._clock()
                self._tell_waiting(job, callbacks, began_at)

    def _tell_waiting(self, job: SentJob, callbacks: JobCallbacks, began_at: float) -> None:
        before = self._front.jobs.place_of(job) if job.host is None else 0
        if job.host is not None:
            text, reason = because(f"the host {job.host}", "host", host=job.host)
        elif before:
            text, reason = pictures_before(before)
        else:
            text, reason = because("a host that is free", "free_host")
        waited_s = round(max(0.0, self._clock() - began_at), 1)
        callbacks.on_wait(Waiting(text, reason, waited_s, None, before))

    def _handle(
        self,
        event: Mapping[str, Any],
        sent: Mapping[str, SentJob],
        wanted: str,
        callbacks: JobCallbacks,
    ) -> None:
        job = sent.get(str(event.get("job")))
        if job is None or job.id in self._done:
            return
        kind = event.get("kind")
        if kind == "stopped":
            reason: EaselError = event["reason"]
            raise reason
        if kind == "lost":
            if event.get("attempt") == job.attempt:
                self._lost(job, event)
            return
        try:
            result = ResultDocument.read(event.get("result") or {}) if kind == "ended" else None
            told = _told(event, job.id)
        except (ClusterMessageInvalid, KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("a message about the job %s cannot be used: %s", job.id, error)
            return
        if result is not None:
            self._ended(job, result)
        elif isinstance(told, Waiting):
            if job.id == wanted:
                callbacks.on_wait(told)
        elif told is not None and job.id == wanted:
            callbacks.on_progress(told)

    def _ended(self, job: SentJob, result: ResultDocument) -> None:
        if result.error is not None:
            if result.attempt != job.attempt:
                return  # of a host that was given up
            if not result.is_hosts_fault:
                raise result.error
            if not isinstance(result.error, ServerStopping):
                job.avoided = (*job.avoided, result.host)
            self._again(job, result.host, result.error, result.has_begun)
            return
        stored = [StoredPicture(size, digest) for _, _, size, digest in result.pictures]
        try:
            with redis_errors():
                data = picture_parts.fetch(self._front.client, job.id, result.attempt, stored)
        except ClusterPictureLost as error:
            if result.attempt == job.attempt:
                self._again(job, result.host, error, True)
            return
        session = RemoteSession(self._front.hosts.facts_of(result.host), result)
        if session not in self._sessions:
            self._sessions.append(session)
        job.picture_keys = picture_parts.keys_of(job.id, result.attempt, stored)
        outcome = result.outcome(job.id, data)
        self._done.add(job.id)
        self._results[job.id] = JobResult(outcome, session, result.waited_s, failure=job.failure)
        self._front.jobs.end(job, is_cancelled=job.attempt > 1)

    def _lost(self, job: SentJob, event: Mapping[str, Any]) -> None:
        """See `LostJobs`."""
        host = str(event.get("host"))
        error = _gone(host)
        if event.get("by_host"):
            error = HostGone(f"{host} is there, and does not go on with the job.", host=host)
            avoided = (*job.avoided, host)
            try:
                self._front.hosts.host_for(self._compiled.plan.model, avoided)
                job.avoided = avoided
            except NoHosts:
                if event.get("is_queued"):
                    return  # there is no other one, and this one may go on
        self._again(job, host, error, job.was_received)

    def _again(self, job: SentJob, host: str, error: EaselError, has_begun: bool) -> None:
        """Have another host draw it. Raises the error if that was tried often enough, or none can."""
        log.warning("%s: %s (%s) The job %s is sent again.", host, error.message, error.code, job.id)
        if has_begun:
            job.failure = host, error
            job.begun += 1
        if job.begun >= _MAX_BEGUN or job.attempt >= _MAX_TRIES:
            raise error
        if not isinstance(error, HostGone):
            try:
                self._front.hosts.host_for(self._compiled.plan.model, job.avoided)
            except NoHosts:
                raise error from None
        self._front.jobs.send_again(job)

    def _record(self, record: DrawingRecord, result: JobResult, index: int, began_at: float) -> None:
        outcome = result.outcome
        ended_at = self._clock()
        submitting_at = max(began_at, ended_at - outcome.run_s - outcome.fetch_s - outcome.queued_s)
        record.ran(
            outcome,
            submitting_at,
            result.queued_s,
            uses_gpu=result.session.uses_gpu,
            engine=result.session.name,
        )


def _gone(host: str) -> HostGone:
    name = host or "a host"
    return HostGone(f"{name} ended or was cut off while it had the job.", host=host)


def _with_lease(callbacks: JobCallbacks, lease: Lease) -> JobCallbacks:
    """They also report the progress to the status, and hear of a cancellation by the owner."""

    def report(event: Progress | Preview) -> None:
        if isinstance(event, Progress) and event.maximum > 1:
            lease.report_progress(event.value, event.maximum)
        callbacks.on_progress(event)

    return replace(callbacks, on_progress=report, cancelled=lambda: callbacks.cancelled() or lease.is_void())


def _told(event: Mapping[str, Any], job: str) -> Progress | Preview | Waiting | None:
    """What a host tells about a job that it has; None if it is nothing for the client. Raises KeyError, TypeError or
    ValueError for a message that has not the form of one."""
    match event.get("kind"):
        case "progress":
            return Progress(job, _text_or_none(event["node"]), int(event["value"]), int(event["maximum"]))
        case "preview":
            data = b64decode(event["data"], validate=True)
            return Preview(job, _text_or_none(event["node"]), str(event["mime"]), data)
        case "waiting":
            expected_s = event["expected_s"]
            return Waiting(
                str(event["waits_for"]),
                dict(event["reason"]),
                float(event["waited_s"]),
                None if expected_s is None else int(expected_s),
                int(event["place"]),
            )
    return None


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
