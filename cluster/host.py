"""Draws the jobs that a host gets. In each child of its worker; what the worker's main process does is in heartbeat.py."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import redis

from cluster import input_images, names, picture_parts
from cluster.dispatcher import REMOVE_ATTEMPT
from cluster.job_documents import JobDocument, ResultDocument, error_document
from cluster.job_watch import JobWatch
from cluster.options import ClusterOptions
from cluster.prompt_ids import PromptIds
from cluster.redis_connection import connect, redis_errors
from cluster.sealing import Seal
from cluster.teller import Teller
from compiler import Catalogue
from errors import (
    ClusterFull,
    ClusterMessageInvalid,
    ClusterUnreachable,
    EaselError,
    EngineDrained,
    EngineGpuFailed,
    EngineNotListed,
    EngineStalled,
    EngineStartFailed,
    EngineTooOld,
    EngineUnreachable,
    FilesMissing,
    JobLost,
    ModelNotCurated,
    NodesMissing,
    RequestCancelled,
    ServerStopping,
    StateUnwritable,
    StoreFull,
    SwitchFailed,
    error_from_code,
)
from generation import DrawingRecord, JobCallbacks, JobResult, Runs, TimeLeft, Uploads
from observer import Observer

log = logging.getLogger("easel.cluster")
_HOSTS_FAULTS = (
    *(EngineUnreachable, EngineStalled, EngineStartFailed, EngineGpuFailed, JobLost, EngineDrained),
    *(FilesMissing, NodesMissing, EngineTooOld, EngineNotListed, ModelNotCurated),
    *(SwitchFailed, ServerStopping, StoreFull, StateUnwritable, ClusterMessageInvalid),
)
"""After these another host may draw the job"""
_STORE_FOR_S = 60.0
"""So long a result is offered to a Redis that does not answer"""
_MAX_RUNS = 3
"""Of one job on one host. Celery would give it to a new process each time, and it may be the job that ends them"""
_SMALL_BYTES = 4_000_000
_RESULT_KEPT_S = 120


class LocalRuns(Runs, Protocol):
    """The running of one job on the engines of this host."""

    def ended(self, prompt_ids: Sequence[str]) -> JobResult | None:
        """The result of the job, if an engine has finished it for an earlier process under one of these ids and still has
        the pictures that it saved."""


class RunsOfHost(Protocol):
    """Makes the runs of one job; as the generator does."""

    def __call__(
        self, document: JobDocument, catalogue: Catalogue, uploads: Uploads, time_left: TimeLeft
    ) -> LocalRuns: ...


class Host:
    """`catalogue`: returns the current one. `make_runs`: of a job on the engines of this host."""

    def __init__(
        self,
        options: ClusterOptions,
        catalogue: Callable[[], Catalogue],
        make_runs: RunsOfHost,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._seal = options, Seal(options.key)
        self._catalogue, self._make_runs, self._clock = catalogue, make_runs, clock
        self._client: redis.Redis = connect(options)
        self._prompt_ids = PromptIds(self._client, self._seal, options.name)

    def draw(self, id: str, attempt: int, *, may_have_run: bool = False) -> None:
        """Draw a job that was sent to this host, unless nobody wants it any more. `may_have_run`: whether a process that was
        killed may have begun this attempt. Raises the errors of Redis, after which the job is sent again by whoever waits
        for it."""
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.get(names.job(id))
            pipeline.hget(names.ASSIGNED, id)
            pipeline.exists(names.cancelled(id))
            data, assigned, is_cancelled = pipeline.execute()
        if data is None or is_cancelled or not self._is_mine(assigned, attempt):
            log.info("the job %s is not wanted here any more", names.shown(id))
            self._forget(id, attempt)
            return
        try:
            document = JobDocument.read(self._seal.open(names.job(id), data))
        except ClusterMessageInvalid as error:
            log.warning("the job %s: %s", names.shown(id), names.shown(error.message, 300))
            self._store(
                id,
                attempt,
                "",
                ResultDocument(attempt, self._options.name, error=error, is_hosts_fault=True),
                [],
            )
            return
        earlier = self._prompt_ids.earlier(id) if may_have_run or attempt > 1 else ()
        self._draw(document, attempt, earlier)

    def _is_mine(self, assigned: Any, attempt: int) -> bool:
        with contextlib.suppress(TypeError, ValueError, KeyError):
            found = json.loads(assigned)
            return (found["host"], found["attempt"]) == (self._options.name, attempt)
        return False

    def _draw(self, document: JobDocument, attempt: int, earlier: tuple[str, ...]) -> None:
        tell = Teller(self._client, self._seal, document, attempt)
        begin = partial(tell, "received")
        with JobWatch(self._client, document, self._options.name, attempt, begin) as watch:
            pictures: list[bytes] = []
            try:
                drawn = self._run(document, attempt, earlier, tell, watch)
            except RequestCancelled:
                log.info("the job %s was given up: %s", document.id, watch.reason or "cancelled")
                self._forget(document.id, attempt)
                return
            except Exception as error:
                result = self._failure(error, attempt, tell.has_begun)
            else:
                result, pictures = self._success(drawn, attempt)
            # This host has the job until its result is stored, which may take a minute if Redis is away.
            self._store(document.id, attempt, document.front, result, pictures)

    def _run(
        self,
        document: JobDocument,
        attempt: int,
        earlier: tuple[str, ...],
        tell: Teller,
        watch: JobWatch,
    ) -> JobResult:
        """`earlier`: the ids under which the engines may have it from processes that have ended. Raises what the engine
        raises, and JobLost if it was begun here often enough."""
        time_left = TimeLeft(self._clock() + document.timeout_s, self._clock)
        catalogue = self._catalogue()
        _check_names(document, catalogue)
        with contextlib.closing(Uploads()) as uploads:
            self._add_uploads(document, uploads)
            runs = self._make_runs(document, catalogue, uploads, time_left)
            if earlier and (ended := runs.ended(earlier)) is not None:
                log.warning("the job %s had ended before its process did: it is not drawn again", document.id)
                return ended
            # The first attempt, which has the job's own id, may have been on another host.
            if len(earlier) - (attempt > 1) >= _MAX_RUNS:
                tell.has_begun = True
                raise JobLost(
                    f"The process that draws on {self._options.name} has ended {_MAX_RUNS} times with this job."
                )
            prompt_id = self._prompt_ids.new(document.id, earlier, document.timeout_s)
            runs.counts_waiting = document.counts_waiting
            callbacks = JobCallbacks(
                on_progress=tell.progress,
                on_wait=tell.waiting,
                on_submitted=lambda: None,
                on_run=lambda: tell("begun"),
                cancelled=watch.is_unwanted,
            )
            record = DrawingRecord(Observer(), self._clock, document.sender, document.compiled.plan)
            results = runs.results(
                [prompt_id],
                callbacks,
                record,
                previews=document.previews,
                sender=document.sender,
                prompt=document.prompt,
            )
            try:
                with contextlib.closing(results):
                    return next(results)
            finally:
                for session in runs.sessions:
                    with time_left.limit():
                        session.erase_uploads()

    def _add_uploads(self, document: JobDocument, uploads: Uploads) -> None:
        for index, (name, *_) in enumerate(document.uploads):
            with redis_errors():
                data = input_images.fetch(self._client, document, index)
            uploads.add(name, data)

    def _success(self, drawn: JobResult, attempt: int) -> tuple[ResultDocument, list[bytes]]:
        outcome, session = drawn.outcome, drawn.session
        pictures = [picture.data for picture in outcome.pictures]
        result = ResultDocument(
            attempt,
            self._options.name,
            engine=session.name,
            is_sketch=session.is_sketch,
            uses_gpu=session.uses_gpu,
            pictures=tuple((picture.node, picture.mime, 0, "") for picture in outcome.pictures),
            cached_nodes=tuple(outcome.cached_nodes),
            nodes=session.saving_nodes(0),
            waited_s=drawn.queued_s,
            queued_s=outcome.queued_s,
            run_s=outcome.run_s,
            fetch_s=outcome.fetch_s,
        )
        return result, pictures

    def _failure(self, error: Exception, attempt: int, has_begun: bool) -> ResultDocument:
        if not isinstance(error, EaselError):
            log.error("drawing failed", exc_info=error)
            error = EaselError("An internal error of the host; see its log.")
        try:
            json.dumps(error_document(error), allow_nan=False)
        except (TypeError, ValueError):
            error = error_from_code(error.code, error.message)
        # What is wrong with the job itself would be wrong on every host.
        is_hosts_fault = isinstance(error, _HOSTS_FAULTS) or type(error) is EaselError
        return ResultDocument(
            attempt,
            self._options.name,
            error=error,
            is_hosts_fault=is_hosts_fault,
            has_begun=has_begun,
        )

    def _forget(self, id: str, attempt: int) -> None:
        with contextlib.suppress(EaselError):
            self._finish(id, attempt, "", None, [])

    def _store(
        self, id: str, attempt: int, front: str, result: ResultDocument, pictures: list[bytes]
    ) -> None:
        """Give the result to whoever waits for it. Offers it for a minute to a Redis that is away or full."""
        ends_at = time.monotonic() + _STORE_FOR_S
        while True:
            try:
                self._finish(id, attempt, front, result, pictures)
                return
            except ClusterFull as error:
                log.error("the job %s: %s", id, error.message)
                failed = ResultDocument(attempt, self._options.name, error=error, has_begun=True)
                if result.error is None:
                    result, pictures = failed, []
                    continue
                if time.monotonic() > ends_at:
                    raise
            except ClusterUnreachable:
                if time.monotonic() > ends_at:
                    raise
            time.sleep(0.5)

    def _finish(
        self, id: str, attempt: int, front: str, result: ResultDocument | None, pictures: list[bytes]
    ) -> None:
        with redis_errors():
            # Few bytes go with the message, in one transaction: it is sent only if all is stored.
            is_small = 0 < sum(map(len, pictures)) <= _SMALL_BYTES
            pipeline = self._client.pipeline(transaction=is_small)
            if pictures and result is not None:
                stored = picture_parts.put(pipeline, id, attempt, pictures)
                if not is_small:
                    pipeline.execute()
                kinds = zip(result.pictures, stored, strict=True)
                found = tuple((node, mime, each.bytes, each.sha256) for (node, mime, *_), each in kinds)
                result = replace(result, pictures=found)
            pipeline.eval(REMOVE_ATTEMPT, 1, names.ASSIGNED, id, attempt)
            if result is not None:
                document = result.as_json()
                pipeline.set(
                    names.result(id), self._seal.close(names.result(id), document), ex=_RESULT_KEPT_S
                )
                if front:
                    channel = names.channel(front)
                    event = {"kind": "ended", "job": id, "attempt": attempt, "result": document}
                    pipeline.publish(channel, self._seal.close(channel, event))
            pipeline.execute()


def _check_names(document: JobDocument, catalogue: Catalogue) -> None:
    """Raises ModelNotCurated if this host's catalogue lacks what the job names."""
    plan = document.compiled.plan
    loras = [lora["id"] for lora in plan.values["loras"].value]
    model = catalogue.models.get(plan.model)
    known = {} if model is None else catalogue.loras_for(model)
    lacking = [] if model is not None else [plan.model]
    lacking += [name for name in plan.stages if name not in catalogue.stages]
    lacking += [] if model is None else [name for name in loras if name not in known]
    if lacking:
        raise ModelNotCurated(f"The catalogue of this host does not have {', '.join(lacking)}.")
