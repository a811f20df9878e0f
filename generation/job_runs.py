"""Runs the jobs of one request on the engines of this host: chooses an engine for each, leases its GPU, and goes to another
one if it fails. With one engine the jobs run one after another; with several some run at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from arbiter import Lease, Sender
from deadline import time_limit
from engine import Outcome
from engines import EngineUnit, Fleet
from errors import (
    EaselError,
    EngineGpuFailed,
    EngineRejected,
    EngineStalled,
    EngineStartFailed,
    EngineTooOld,
    EngineUnreachable,
    FilesMissing,
    JobLost,
    NodesMissing,
    RequestCancelled,
    SwitchFailed,
)
from generation.engine_session import EngineSession, JobCallbacks
from generation.fitted_graphs import FittedGraph, FittedGraphs
from generation.lacks import Lacks
from generation.record import DrawingRecord
from generation.runs import JobResult, RequestedJobs
from system_errors import shortage_in

LACKS = (FilesMissing, NodesMissing, EngineTooOld)
"""What one engine may lack, and another have"""
_ENGINE_FAILED = (EngineUnreachable, EngineStalled, EngineStartFailed, EngineGpuFailed, JobLost)
"""After these the job may be drawn by another engine. What is wrong with the job itself would be wrong there, too."""
_JOBS_PER_ENGINE = 2
"""Of one request at the same time: one runs, and the next is there when it ends"""
_FIT_TIMEOUT_S = 10.0
"""For an engine to describe its nodes, if another one could draw the job"""
_ASK_S = 10.0
"""For an engine to say what it has of a job, and to send its pictures"""
_HUNG_S = 60.0
"""An engine that answers nothing for so long while it is asked every few seconds has its job drawn elsewhere. One that loads
a model may be silent for half a minute."""
_MAX_MOVES = 8
"""Of one job from the queue of an engine to that of another"""
_MOVE_LOOK_S = 1.0
"""Between two looks whether a waiting job had better move"""
_POLL_S = 0.25


class _Moved(Exception):
    """The job has left its engine's queue for a better one."""


@dataclass(frozen=True)
class _Attempt:
    """To run one job on one engine. `index`: of the job among those of the request. `avoided`: engine -> why it cannot draw
    this job. `may_move`: whether the job may leave the queue of the engine for a better one. `has_claim`: to be called once
    it waits for the lease, or has it."""

    index: int
    job: str
    callbacks: JobCallbacks
    record: DrawingRecord
    previews: bool
    avoided: Mapping[str, EaselError]
    may_move: bool
    has_claim: Callable[[], None]


class _Move:
    """Looks once a second whether a job that waits for an engine would be drawn sooner by another one."""

    def __init__(self, is_better_elsewhere: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._is_better_elsewhere, self._clock = is_better_elsewhere, clock
        self._next_look_at = clock() + _MOVE_LOOK_S
        self.was_due, self.is_over = False, False
        """`is_over`: the job waits no longer"""

    def is_due(self) -> bool:
        """Stays true once it is."""
        if not self.was_due and not self.is_over and self._clock() >= self._next_look_at:
            self._next_look_at = self._clock() + _MOVE_LOOK_S
            self.was_due = self._is_better_elsewhere()
        return self.was_due


class _Silence:
    """Whether the engine of a job that runs has answered nothing for so long that another one is to draw it. `silent_s`: how
    long it has answered nothing. `has_other`: whether another one can."""

    def __init__(
        self, silent_s: Callable[[], float], has_other: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._silent_s, self._has_other, self._clock = silent_s, has_other, clock
        self._running_since = clock()
        self.was_too_long = False

    def is_too_long(self) -> bool:
        """Stays true once it is."""
        # An engine that had no job was asked nothing, and so said nothing.
        silent_s = min(self._silent_s(), self._clock() - self._running_since)
        if not self.was_too_long and silent_s > _HUNG_S:
            self.was_too_long = self._has_other()
        return self.was_too_long


class JobRuns:
    """Of one request."""

    def __init__(
        self,
        fleet: Fleet,
        fitted_graphs: FittedGraphs,
        lacks: Lacks,
        requested: RequestedJobs,
        clock: Callable[[], float],
    ) -> None:
        self._fleet, self._fitted_graphs, self._all_lacks = fleet, fitted_graphs, lacks
        self.is_single = fleet.is_single
        """Whether there is only one engine. One that is added while the request runs is for later ones."""
        self._compiled, self._catalogue = requested.compiled, requested.catalogue
        self._requested, self._time_left, self._clock = requested, requested.time_left, clock
        self._lacks_key = lacks.key(self._compiled.plan)
        self._sessions: dict[str, EngineSession] = {}
        self._past_sessions: list[EngineSession] = []
        """With engines that were changed meanwhile"""
        self._lock = threading.RLock()
        self.counts_waiting = True
        """Whether the time in which it waits for the GPU is a part of its own"""
        self._sender, self._prompt = Sender(), ""
        self._jobs: tuple[str, ...] = ()
        self._listings: dict[str, contextlib.ExitStack] = {}
        self._present: Counter[str] = Counter()
        """unit -> how many jobs of the request are there now"""

    @property
    def names_engines(self) -> bool:
        """Whether the answer says which engine drew a picture."""
        return not self.is_single

    # --- before the GPU is needed ------------------------------------------------------------------

    def prepare(self, job: str) -> EngineSession:
        """The engine that would get the first job now, with the graphs fitted to it. Raises what the engines lack, and the
        errors of `Fleet.place`."""
        try:
            return self._place(job, "", {})
        finally:
            self._fleet.forget(job)

    @property
    def sessions(self) -> tuple[EngineSession, ...]:
        """Those of all engines that were chosen for one of the jobs."""
        return (*self._past_sessions, *self._sessions.values())

    def ended(self, prompt_ids: Sequence[str]) -> JobResult | None:
        """The result of the first job, if an engine has finished it for an earlier process under one of these ids and still
        has the pictures that it saved. An engine that does not answer is not asked further."""
        output = self._compiled.graphs[0].output
        for unit in self._fleet.units:
            with contextlib.suppress(EngineUnreachable, *LACKS), time_limit(_ASK_S), self._time_left.limit():
                session = self._session(unit)
                nodes = session.graph(0).nodes
                for prompt_id in reversed(prompt_ids):
                    outcome = session.engine.ended_job(prompt_id, nodes, output)
                    if outcome is not None:
                        return JobResult(outcome, session, queued_s=0.0)
        return None

    # --- running -----------------------------------------------------------------------------------

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
        """Run all jobs; yields the results in their order. `jobs`: their ids. Calls the callbacks in the thread that
        iterates; those on progress and waiting only of the job whose result comes next."""
        self._sender, self._prompt, self._jobs = sender, prompt, tuple(jobs)
        try:
            if self.is_single or len(jobs) == 1:
                for index, job in enumerate(jobs):
                    yield self._run(index, job, callbacks, record, previews)
            else:
                yield from self._results_in_parallel(callbacks, record, previews)
        finally:
            for listing in self._listings.values():
                listing.close()

    def _results_in_parallel(
        self, callbacks: JobCallbacks, record: DrawingRecord, previews: bool
    ) -> Generator[JobResult, None, None]:
        parallel = _ParallelRuns(
            len(self._jobs),
            lambda index, own: self._run(index, self._jobs[index], own, record, previews),
            callbacks,
        )
        try:
            parallel.start(min(len(self._jobs), _JOBS_PER_ENGINE * len(self._fleet.units)))
            for index in range(len(self._jobs)):
                yield parallel.result(index)
        finally:
            parallel.stop()

    def _run(
        self, index: int, job: str, callbacks: JobCallbacks, record: DrawingRecord, previews: bool
    ) -> JobResult:
        """Run one job, on another engine if its first one fails. `index`: of the job among those of the request"""
        avoided: dict[str, EaselError] = {}
        failure: tuple[str, EaselError] | None = None
        moves_left = _MAX_MOVES
        try:
            while True:
                has_claim = self._fleet.begin_placing()
                try:
                    session = self._place(job, self._sender.key, avoided)
                except BaseException:
                    has_claim()
                    raise
                unit, submitted = session.unit, threading.Event()
                own = replace(callbacks, on_submitted=_both(submitted.set, callbacks.on_submitted))
                try:
                    self._arrive(session)
                    attempt = _Attempt(index, job, own, record, previews, avoided, moves_left > 0, has_claim)
                    return replace(self._run_there(session, attempt), failure=failure)
                except _Moved:
                    moves_left -= 1
                except EngineRejected:
                    avoided[unit.name] = self._lack_after_rejection(session)
                except (*_ENGINE_FAILED, SwitchFailed) as error:
                    if self.is_single:
                        raise
                    self._time_left.seconds()
                    if not isinstance(error, SwitchFailed):
                        self._fleet.failed(unit, error)
                    if submitted.is_set():
                        if failure is not None:
                            raise
                        failure = unit.name, error
                    avoided[unit.name] = error
                finally:
                    has_claim()
                    self._leave(session)
        finally:
            self._fleet.forget(job)

    def _run_there(self, session: EngineSession, attempt: _Attempt) -> JobResult:
        """Run one job under a lease. The lease carries the job's id, so that the job is cancelled if this process
        dies. Raises _Moved if it left the queue of the engine for a better one."""
        with self._time_left.limit():
            uses_gpu = session.uses_gpu
        with contextlib.ExitStack() as leased:
            held = self._wait_for_gpu(leased, session, attempt, uses_gpu=uses_gpu)
            with self._time_left.limit():
                outcome = self._run_leased(held, session, attempt, uses_gpu=uses_gpu)
        self._fleet.ran(session.unit, self._compiled.plan.model, outcome.run_s, len(outcome.pictures))
        return JobResult(outcome, session, held.queued_s)

    def _wait_for_gpu(
        self, leased: contextlib.ExitStack, session: EngineSession, attempt: _Attempt, *, uses_gpu: bool
    ) -> Lease:
        """The lease, which ends with `leased`."""
        waiting_at, callbacks = self._clock(), attempt.callbacks

        def is_better_elsewhere() -> bool:
            lacking = {**self._lacking(), **attempt.avoided}
            return self._fleet.is_better_elsewhere(attempt.job, lacking)

        def leaves_queue() -> bool:
            attempt.has_claim()
            return callbacks.cancelled() or (may_move and move.is_due())

        may_move = attempt.may_move and not self.is_single
        move = _Move(is_better_elsewhere, self._clock)
        with self._time_left.limit():
            lease = session.unit.arbiter.lease(
                "generation",
                job=attempt.job,
                timeout_s=self._time_left.seconds(),
                key=self._sender.key,
                need_bytes=self._need_bytes,
                uses_gpu=uses_gpu,
                cancelled=leaves_queue,
                on_wait=callbacks.on_wait,
            )
            try:
                held = leased.enter_context(lease)
            except RequestCancelled:
                if move.was_due:
                    raise _Moved from None
                raise
        attempt.has_claim()
        move.is_over = True
        attempt.record.waited(held, waiting_at)
        if not self.counts_waiting:
            self._time_left.extend(self._clock() - waiting_at)
        return held

    def _run_leased(
        self, held: Lease, session: EngineSession, attempt: _Attempt, *, uses_gpu: bool
    ) -> Outcome:
        """Raises EngineUnreachable if the engine answers nothing for long, and another one can draw the job."""

        def has_other() -> bool:
            lacking = {**self._lacking(), **attempt.avoided}
            return self._fleet.has_other(session.unit, self._compiled.plan.model, lacking)

        silence = _Silence(session.engine.silent_s, has_other, self._clock)
        callbacks = attempt.callbacks
        if not self.is_single:
            callbacks = replace(callbacks, cancelled=_either(callbacks.cancelled, silence.is_too_long))
        try:
            return session.run(
                *(attempt.index, attempt.job, held, callbacks, attempt.record),
                timeout_s=self._time_left.seconds,
                previews=attempt.previews,
                uses_gpu=uses_gpu,
            )
        except RequestCancelled:
            if silence.was_too_long:
                message = f"The engine {session.unit.name} has answered nothing for {round(_HUNG_S)} s."
                raise EngineUnreachable(message, slow=True) from None
            raise

    def _lack_after_rejection(self, session: EngineSession) -> EaselError:
        """What the engine lacks that has just rejected a graph: a file may have been deleted since it was fitted. For an
        `except` block: raises what is handled there if it lacks nothing, or what it lacks if there is no other engine."""
        try:
            with contextlib.suppress(EngineUnreachable), self._time_left.limit():
                session.fit_again()
        except LACKS as error:
            if self.is_single:
                raise
            self._all_lacks.remember(session.unit.name, self._lacks_key, error)
            return error
        raise

    @property
    def _need_bytes(self) -> int:
        """GPU memory that the model needs; 0 if the catalogue does not say."""
        return int((self._catalogue.models[self._compiled.plan.model].min_vram_gb or 0) * 1e9)

    # --- choosing ----------------------------------------------------------------------------------

    def _lacking(self) -> dict[str, EaselError]:
        return self._all_lacks.of(self._lacks_key)

    def _place(self, job: str, key: str, avoided: dict[str, EaselError]) -> EngineSession:
        """A session with the engine that is to draw the job. Raises what the engines lack, and the errors of
        `Fleet.place`."""
        while True:
            self._time_left.seconds()  # raises if there is none
            lacking = {**self._lacking(), **avoided}
            unit = self._fleet.place(job, self._compiled.plan.model, key, lacking)
            is_only = self.is_single or not self._fleet.has_other(unit, self._compiled.plan.model, lacking)
            try:
                with contextlib.nullcontext() if is_only else time_limit(_FIT_TIMEOUT_S):
                    return self._session(unit)
            except LACKS as error:
                if self.is_single:
                    raise
                self._all_lacks.remember(unit.name, self._lacks_key, error)
                avoided[unit.name] = error
            except EngineUnreachable as error:
                if self.is_single:
                    raise
                self._time_left.seconds()  # without any left it is not the engine's fault
                self._fleet.failed(unit, error)
                avoided[unit.name] = error
            self._fleet.forget(job)

    def _session(self, unit: EngineUnit) -> EngineSession:
        with self._lock:
            known = self._sessions.get(unit.name)
            if known is not None and known.unit is unit:
                return known
            with self._time_left.limit():
                engine = unit.engine()
                graphs = list[FittedGraph]()
                try:
                    graphs = self._fitted_graphs.get(self._compiled, self._catalogue, engine)
                except EngineUnreachable:
                    if not unit.can_start:
                        raise
            if known is not None:
                self._past_sessions.append(known)
            session = self._sessions[unit.name] = EngineSession(
                *(unit, engine, self._compiled, self._catalogue, graphs, self._requested.uploads),
                *(self._fitted_graphs, self._clock),
            )
            return session

    # --- listing -----------------------------------------------------------------------------------

    def _arrive(self, session: EngineSession) -> None:
        """List the request, with all its jobs, at the GPU of the session, if it is not yet."""
        unit = session.unit
        with self._lock:
            self._present[unit.name] += 1
            if unit.name in self._listings:
                return
            listing = self._listings[unit.name] = contextlib.ExitStack()
            with self._time_left.limit():
                uses_gpu = session.uses_gpu
            listing.enter_context(
                unit.arbiter.listed(
                    self._requested.id,
                    model=self._compiled.plan.model,
                    jobs=self._jobs,
                    sender=self._sender,
                    uses_gpu=uses_gpu,
                    prompt=self._prompt,
                )
            )

    def _leave(self, session: EngineSession) -> None:
        """With one engine the request stays listed between its jobs."""
        name = session.unit.name
        with self._lock:
            self._present[name] -= 1
            if not self._present[name] and not self.is_single:
                self._listings.pop(name).close()


def _either(first: Callable[[], bool], second: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: first() or second()


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


class _ParallelRuns:
    """The jobs of one request in threads. `run` runs the job of an index, with callbacks of its own. What these are told
    reaches `callbacks` in the thread that waits for the results: only that of the job whose result it waits for."""

    def __init__(
        self, count: int, run: Callable[[int, JobCallbacks], JobResult], callbacks: JobCallbacks
    ) -> None:
        self._run, self._callbacks = run, callbacks
        self._indexes, self._lock = iter(range(count)), threading.Lock()
        self._calls: SimpleQueue[tuple[int | None, Callable[[], None]]] = SimpleQueue()
        """What to call in the thread of the results; None: whichever job it waits for"""
        self._results: dict[int, JobResult] = {}
        self._error: BaseException | None = None
        """The first one"""
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Raises TooManyThreads and the like if the system gives none."""
        for number in range(count):
            thread = threading.Thread(target=self._work, name=f"job-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise (shortage_in(error) or error) from error
                return
            self._threads.append(thread)

    def result(self, index: int) -> JobResult:
        """Raises the first error of any job, and RequestCancelled."""
        while index not in self._results:
            if self._error is not None:
                raise self._error
            try:
                of_job, call = self._calls.get(timeout=_POLL_S)
            except Empty:
                if self._callbacks.cancelled():
                    self._stopping.set()
                continue
            if of_job in (None, index):
                call()
        return self._results.pop(index)

    def stop(self) -> None:
        """Cancel what still runs, and wait for it."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                index = next(self._indexes, None)
            if index is None:
                return
            try:
                result = self._run(index, self._callbacks_of(index))
            except BaseException as error:
                with self._lock:
                    self._error = self._error or error
                self._stopping.set()
            else:
                self._results[index] = result
            self._calls.put((None, _nothing))

    def _callbacks_of(self, index: int) -> JobCallbacks:
        callbacks = self._callbacks

        def later(call: Callable[..., None]) -> Callable[..., None]:
            return lambda *values: self._calls.put((index, lambda: call(*values)))

        return JobCallbacks(
            on_progress=later(callbacks.on_progress),
            on_wait=later(callbacks.on_wait),
            on_submitted=lambda: self._calls.put((None, callbacks.on_submitted)),
            on_run=later(callbacks.on_run),
            cancelled=self._stopping.is_set,
        )


def _nothing() -> None:
    pass
