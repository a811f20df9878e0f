"""The arbiter's interface: leases, explicit switchovers, the pin. Callers say which mode they need; they do not check
the current mode first."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arbiter.active_requests import ActiveRequest, ActiveRequests, Sender
from arbiter.claim_queue import ClaimQueue
from arbiter.event_log import EventLog
from arbiter.fair_queue import flow_of
from arbiter.job_progress import JobProgressStore
from arbiter.leases import Claim, ClaimFolder, OwnClaim
from arbiter.monitor import Monitor, QuickCheck
from arbiter.outlook import Outlook
from arbiter.policy import (
    after_llm_load,
    has_failed,
    idle_restore_at,
    is_open,
    is_revoked,
    select,
    target_mode,
)
from arbiter.reconciler import Reconciler
from arbiter.state_store import StateStore, not_writable
from arbiter.switch_history import SwitchHistory
from arbiter.switchover import Switchover
from arbiter.turn_store import TurnStore
from arbiter.values import Mode, Pace, Policy, State, Switch, SwitchRequest
from arbiter.waiting import Waiting, seconds_until, waiting, waiting_in_engine
from arbiter.waiting_threads import WaitingThreads
from errors import (
    ArbiterUnavailable,
    ComfyuiBusy,
    EaselError,
    GpuPinned,
    GpuPreempted,
    JobNotFound,
    NotGenerating,
    RenderCancelled,
    RequestCancelled,
    SwitchInProgress,
)
from gpu_tenant import Tenant
from observer import Observer

log = logging.getLogger("easel.gpu")

_PROGRESS_DELAY_S = 0.2
"""Progress of a shorter job is not written: it would be over before a client could read it"""
_EXIT_POLL_S = 0.02


@dataclass(frozen=True)
class Snapshot:
    """What the arbiter knows at one moment, for display. `claims` are in the order of their numbers."""

    state: State
    claims: Sequence[Claim]
    pace: Pace
    idle_restore_at: float | None
    requests: tuple[ActiveRequest, ...]
    waiting: Mapping[str, Waiting]
    """For each waiting job"""


def _is_switching(state: State) -> bool:
    return state.active_switch is not None or state.wanted is not None


def _has_returned(state: State) -> bool:
    """Whether the LLM stacks have the GPU, or generation mode is pinned."""
    return not _is_switching(state) and (state.mode == "inference" or state.pinned)


class Lease:
    """A shared hold on the current mode. While it lasts the GPU is not handed over, except by force. `queued_s`: how
    long the request waited for it."""

    def __init__(self, arbiter: Arbiter, own_claim: OwnClaim, queued_s: float) -> None:
        self._arbiter, self._own_claim = arbiter, own_claim
        self.queued_s, self._started_at = queued_s, time.monotonic()
        self.is_kept = False

    def switch_before(self, since: float) -> Switch | None:
        """The last switch, if it ended after `since` (Unix time): this lease has waited for it."""
        switch = self._arbiter.state_store.state().switch
        return switch if switch is not None and (switch.ended or 0) > since else None

    def is_void(self) -> bool:
        """Whether a forced switch revoked the lease or the owner cancelled its job: stop, and submit nothing more."""
        return self._arbiter.void_reason(self._own_claim.claim) is not None

    def keep(self) -> Callable[[], None]:
        """Keep the lease after its block until the returned function is called: the job may still run in the engine."""
        self.is_kept = True
        return lambda: self._arbiter._end_claim(self._own_claim)

    def record_run(self, seconds: float) -> None:
        """Record how long the engine worked on the job; `Retry-After` is computed from it."""
        self._own_claim.run_s = seconds

    def waiting_in_engine(self, before: int) -> Waiting:
        """What the job waits for while `before` other jobs are before it in the engine's queue."""
        waited_s = self.queued_s + time.monotonic() - self._started_at
        return waiting_in_engine(before, self._arbiter.state_store.pace(), waited_s)

    def report_progress(self, step: int, steps: int) -> None:
        """Report how far the job is, for the status of all processes. Does nothing in a job's first moments."""
        if time.monotonic() - self._started_at >= _PROGRESS_DELAY_S:
            self._arbiter.job_progress.report(self._own_claim.claim.job, step, steps)


class Arbiter:
    """One for each process; they agree through `folder`. Safe for threads.

    Without `tenants` the GPU is not shared: leases are granted at once and there are no switches. `available_bytes`
    returns the GPU memory that the engine could use now, None if unknown.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tenants: Mapping[Mode, Tenant] | None = None,
        engine: Tenant | None = None,
        policy: Policy | None = None,
        available_bytes: Callable[[], int | None] = lambda: None,
        engine_down: Callable[[], bool] = lambda: False,
        engine_uses_gpu: Callable[[], bool] = lambda: True,
        event_log_bytes: int = 0,
        queues_all: bool = False,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`event_log_bytes`: the most that the event log keeps; 0: none. `engine` is for an arbiter without `tenants`,
        which cancels the jobs of dead processes in it. `queues_all`: the engine gets `policy.depth` jobs at most also where
        no key and no LLM asks for it; the others wait here, and may go to another engine. `observer` is told of each switch
        that this process has run."""
        self.shares_gpu = tenants is not None
        self.policy, self._clock, self._queues_all = policy or Policy(), clock, queues_all
        self.state_store = StateStore(folder)
        self._queue = self._new_queue(folder / "holds", folder / "turns.json", needs_mode=self.shares_gpu)
        self._queue_without_gpu = self._new_queue(
            folder / "holds_without_gpu", folder / "turns_without_gpu.json", needs_mode=False
        )
        """Of jobs that need no GPU: no decision about it depends on them"""
        self.claims = self._queue.claims
        self.events = EventLog(folder / "events.jsonl", event_log_bytes, clock)
        self.switch_history = SwitchHistory(self.events.path)
        self.job_progress = JobProgressStore(folder / "jobs", clock)
        self._requests = ActiveRequests(folder / "requests", clock)
        self._tenants: dict[Mode, Tenant] = dict(tenants or {})
        if engine is not None:
            self._tenants.setdefault("generation", engine)
        llms = self._tenants.get("inference")
        self._llm_check = None if llms is None else QuickCheck(llms)
        self._engine_uses_gpu, self._stopping = engine_uses_gpu, threading.Event()
        self._job_models: Mapping[str, str] = {}
        """Of the jobs that were there at the last look"""
        self.reconciler = Reconciler(
            self._new_switchover(available_bytes, observer or Observer()),
            shares_gpu=self.shares_gpu,
            monitor=Monitor(llms, engine_down),
            engine_uses_gpu=engine_uses_gpu,
            clean_up=self._clean_up,
            turns=self._queue.turns,
        )
        self._threads = WaitingThreads(
            (self._queue, self._queue_without_gpu),
            self.state_store,
            self.policy,
            void_reason=self.void_reason,
            available_bytes=available_bytes,
            wake=self.reconciler.wake,
        )

    def _new_queue(self, claims: Path, turns: Path, *, needs_mode: bool) -> ClaimQueue:
        return ClaimQueue(
            ClaimFolder(claims),
            TurnStore(turns),
            needs_mode=needs_mode,
            queues_all=self._queues_all,
            state_store=self.state_store,
            policy=self.policy,
            clock=self._clock,
        )

    def _new_switchover(self, available_bytes: Callable[[], int | None], observer: Observer) -> Switchover:
        return Switchover(
            self.state_store,
            self.claims,
            self._tenants,
            self.policy,
            available_bytes=available_bytes,
            has_requests=self._has_requests,
            stopping=self._stopping,
            observer=observer,
            clock=self._clock,
            events=self.events,
        )

    # --- leases ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(
        self,
        mode: Mode,
        *,
        job: str,
        timeout_s: float,
        key: str = "",
        need_bytes: int = 0,
        uses_gpu: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
        on_wait: Callable[[Waiting], None] = lambda waiting: None,
    ) -> Iterator[Lease]:
        """A lease on `mode` for one job, after a switchover if that is needed and allowed.

        `job`: letters, digits, `-` and `_`; for a picture its prompt id. `key`: the name of the API key whose request it
        is; different keys take turns. `need_bytes`: GPU memory that the job needs, 0 for unknown. Without `uses_gpu`
        (sketches) it needs no mode, and without `key` either it is granted at once. `cancelled` is called a few times a
        second while waiting, `on_wait` when what the request waits for changes, and every few seconds.

        Raises GpuBusy if the lease is not granted within `timeout_s`, GpuInGenerationMode for an LLM request that the
        policy refuses, SwitchFailed, GpuPreempted, RenderCancelled, RequestCancelled, and StoreFull if the state
        directory cannot be written.
        """
        started_at, asked_at = time.monotonic(), self._clock()
        flow = flow_of(key) if mode == "generation" else ""
        own_claim = self._create_claim(mode, job, need_bytes, flow, uses_gpu=uses_gpu)
        lease: Lease | None = None
        given_up = ""
        try:
            if own_claim.claim.kind == "ticket":
                queue = self._queue_of(own_claim)
                self._threads.wait(own_claim, queue, started_at, timeout_s, cancelled, on_wait)
            lease = Lease(self, own_claim, time.monotonic() - started_at)
            yield lease
        except EaselError as error:
            given_up = error.code
            reason = self.void_reason(own_claim.claim)
            if reason is None or (isinstance(error, RequestCancelled) and cancelled()):
                raise
            given_up = reason.code
            raise reason from error
        finally:
            if lease is None or not lease.is_kept:
                self._end_claim(own_claim)
            self._record_lease(own_claim, key, asked_at, time.monotonic() - started_at, lease, given_up)

    def _record_lease(
        self, own_claim: OwnClaim, key: str, asked_at: float, total_s: float, lease: Lease | None, error: str
    ) -> None:
        claim = own_claim.claim
        values = {"mode": claim.mode, "job": claim.job, "key": key, "asked_at": round(asked_at, 4)}
        uses_gpu = self._queue_of(own_claim) is self._queue
        if lease is None:
            self.events.write("gave_up", **values, uses_gpu=uses_gpu, error=error)
            return
        waited_s, run_s = round(lease.queued_s, 4), own_claim.run_s
        held_s = round(max(0.0, total_s - waited_s), 4)
        self.events.write(
            "lease", **values, uses_gpu=uses_gpu, waited_s=waited_s, held_s=held_s, run_s=run_s, error=error
        )

    def void_reason(self, claim: Claim) -> EaselError | None:
        """Why the claim of a running process is void, or None."""
        if is_revoked(self.state_store.state(), claim):
            return GpuPreempted("The request was cancelled by a forced switchover or after a drain timeout.")
        if self.job_progress.is_cancelled(claim.job):
            return RenderCancelled("The owner cancelled this render.", id=claim.job)
        return None

    def _create_claim(self, mode: Mode, job: str, need: int, flow: str, *, uses_gpu: bool) -> OwnClaim:
        queue = self._queue if uses_gpu or not self.shares_gpu else self._queue_without_gpu
        try:
            if queue.needs_mode and mode == "generation":
                self._look_for_llms()
            return queue.create(mode, job, need, flow)
        except OSError as error:
            raise not_writable(error) from error

    def _queue_of(self, own_claim: OwnClaim) -> ClaimQueue:
        return self._queue if self._queue.has(own_claim) else self._queue_without_gpu

    def _look_for_llms(self) -> None:
        """Before the first of some pictures in generation mode: if a client has loaded an LLM since the last check,
        request the switch that follows from it, so that the picture waits instead of being drawn beside the LLM."""
        state = self.state_store.state()
        is_first = not select(self.claims.all(), "lease", "generation")
        if self._llm_check is None or not is_first or not is_open(state, "generation"):
            return
        if self.policy.sharing == "coexist":
            return
        residents = self._llm_check.run()
        if not residents:
            return
        # After a failed switch to inference another one would be too early, and the picture has come.
        is_in_use = self._engine_jobs() > 0 or has_failed(state)
        with self.state_store.mutex():
            plan = after_llm_load(self._queue.situation("generation"), residents, is_in_use=is_in_use)
            if plan is not None:
                log.info("before a picture: %s", plan.reason)
                wanted = SwitchRequest(plan.target, pin=plan.pin, reason=plan.reason)
                self.state_store.update(lambda state: replace(state, wanted=wanted))

    def _end_claim(self, own_claim: OwnClaim) -> None:
        claim = own_claim.claim
        own_claim.end()
        self._queue_of(own_claim).end_turn(claim)
        if claim.mode == "generation":
            self.job_progress.remove(claim.job)
            self.state_store.record_use(self._clock(), own_claim.run_s)
        self._threads.wake_next()

    def seconds_until(self, mode: Mode, ticket: Claim | None = None) -> int | None:
        """How long until a new request for `mode`, or the one with `ticket`, can run, in whole seconds; None if
        unknown."""
        situation = self._queue.situation(mode)
        if ticket is None and mode == "generation":
            situation = replace(situation, later_jobs=self._later_jobs())
        return seconds_until(mode, ticket, situation)

    def pace(self) -> Pace:
        """How long the engine's jobs take. Cheap."""
        return self.state_store.pace()

    def outlook(self, *, uses_gpu: bool = True) -> Outlook:
        """What a job would wait for here, at this moment. `uses_gpu`: as for `lease`."""
        queue = self._queue if uses_gpu or not self.shares_gpu else self._queue_without_gpu
        situation = queue.situation("generation")
        running = select(situation.claims, "lease", "generation")
        granted_at = queue.claims.granted_at(running[0]) if running else None
        jobs = [claim.job for claim in situation.claims if claim.mode == "generation"]
        models = self._models_of(jobs)
        return Outlook(situation, models, granted_at)

    def _models_of(self, jobs: Sequence[str]) -> Mapping[str, str]:
        """Reads the requests only if a job is new: there may be a hundred, and each is a file."""
        known = self._job_models
        if any(job not in known for job in jobs):
            listed = {job: request.model for request in self._requests.all() for job in request.jobs}
            # The request of a job is listed before the job has a claim, unless the disk is full.
            known = self._job_models = {
                job: model for job in jobs if (model := listed.get(job) or known.get(job))
            }
        return known

    def _all_claims(self) -> tuple[Claim, ...]:
        """Those of jobs that need no GPU as well."""
        return (*self.claims.all(), *self._queue_without_gpu.claims.all())

    def _later_jobs(self) -> int:
        """How many jobs of the present requests come after the ones that have a claim."""
        claimed = {claim.job for claim in self.claims.all()}
        count = 0
        for request in self._requests.all():
            present = [index for index, job in enumerate(request.jobs) if job in claimed]
            count += len(request.jobs) - 1 - present[-1] if present else 0
        return count

    # --- requests ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listed(
        self,
        id: str,
        *,
        model: str,
        jobs: Sequence[str],
        sender: Sender,
        uses_gpu: bool = True,
        prompt: str = "",
    ) -> Iterator[None]:
        """List a request with all its jobs inside the block, for `cancel` and for display. `prompt`: empty if it is not
        shown."""
        try:
            with self._requests.listed(
                id, model=model, jobs=jobs, sender=sender, uses_gpu=uses_gpu, prompt=prompt
            ):
                yield
        finally:
            for job in jobs:  # it may have been cancelled before its last jobs began
                self.job_progress.remove(job)

    # --- explicit requests of the owner ------------------------------------------------------------

    def switch(self, mode: Mode, *, force: bool = False, pin: bool | None = None) -> str:
        """Request a switchover: "switching", or "noop" if `mode` is the current mode. Generation mode, new or old, then
        stays for `idle_restore_s`, or until an LLM is requested; a pin is applied.

        `force` cancels what runs and waits. Raises ArbiterUnavailable, SwitchInProgress, GpuPinned and ComfyuiBusy.
        """
        self._require_shared_gpu()
        if mode == "generation":
            self._require_gpu_engine()
        jobs = self._engine_jobs() if mode == "inference" and not force else 0
        with self.state_store.mutex():
            state = self.state_store.state()
            if state.active_switch is not None or state.wanted is not None:
                raise self._in_progress(state)
            if state.mode == mode:
                if mode == "generation":
                    pinned = state.pinned if pin is None else pin
                    self.state_store.update(lambda state: replace(state, pinned=pinned, requested=True))
                return "noop"
            if mode == "inference" and not force:
                if state.pinned:
                    raise GpuPinned("Generation mode is pinned; unpin it first, or send force.")
                self._refuse_if_busy(jobs)
            self.state_store.update(
                lambda state: replace(state, wanted=SwitchRequest(mode, force, bool(pin)))
            )
        self.reconciler.wake()
        self.events.write("requested", mode=mode, force=force, pin=bool(pin))
        return "switching"

    def pin(self, pinned: bool) -> None:
        """Pin generation mode against every switch that is not forced, or unpin it: then it ends as after a picture.
        Raises ArbiterUnavailable, NotGenerating and SwitchInProgress."""
        self._require_shared_gpu()
        if pinned:
            self._require_gpu_engine()
        with self.state_store.mutex():
            state = self.state_store.state()
            if state.active_switch is not None or state.wanted is not None:
                raise self._in_progress(state)  # the end of the switch would overwrite the pin
            if pinned and state.mode != "generation":
                raise NotGenerating("The LLM servers have the GPU; only generation mode can be pinned.")
            self.state_store.update(
                lambda state: replace(state, pinned=pinned, requested=pinned and state.requested)
            )
        self.events.write("pin", pinned=pinned)

    def cancel(self, name: str | None) -> tuple[str, ...]:
        """Cancel one request that waits or runs in any process, by one of its ids or that of one of its jobs; None: all
        requests, and the jobs of the engine's other clients. Returns the ids of the jobs that are cancelled. Raises
        JobNotFound and StoreFull."""
        requests = [request for request in self._requests.all() if name is None or request.has_name(name)]
        claimed = [claim.job for claim in self._all_claims() if claim.mode == "generation"]
        # The requests' jobs include those that come later.
        jobs = {job: None for request in requests for job in request.jobs}
        jobs |= {job: None for job in claimed if name in (None, job)}
        if name is not None and not jobs:
            raise JobNotFound(f"No request or job {name!r} waits or runs.", id=name)
        try:
            for job in jobs:
                self.job_progress.cancel(job)
        except OSError as error:
            raise not_writable(error) from error
        if name is None and "generation" in self._tenants:
            with contextlib.suppress(EaselError):  # Easel's own jobs stop in any case
                self._tenants["generation"].cancel_jobs(None)
        self._threads.wake_next()
        return tuple(job for job in jobs if job in claimed) or tuple(jobs)

    def _require_shared_gpu(self) -> None:
        if not self.shares_gpu:
            raise ArbiterUnavailable("No LLM stack is configured, so the GPU is not shared.")

    def _require_gpu_engine(self) -> None:
        if not self._engine_uses_gpu():
            raise ArbiterUnavailable("Only the sketch engine runs, which does not use the GPU.")

    def _in_progress(self, state: State) -> SwitchInProgress:
        mode = target_mode(state)
        return SwitchInProgress(
            f"A switchover to {mode} is in progress.",
            target=mode,
            retry_after_s=self.seconds_until(mode),
        )

    def _refuse_if_busy(self, engine_jobs: int) -> None:
        claims = self.claims.all()
        jobs = max(engine_jobs, len(select(claims, "lease", "generation")))
        waiting = len(select(claims, "ticket", "generation"))
        if jobs or waiting:
            queue = {"running": min(1, jobs), "pending": max(0, jobs - 1) + waiting}
            raise ComfyuiBusy(
                "ComfyUI still has jobs; wait for them, or send force to cancel them.",
                queue=queue,
                retry_after_s=self.seconds_until("generation"),
            )

    def _engine_jobs(self) -> int:
        try:
            return self._tenants["generation"].busy() or 0
        except EaselError:
            return 0

    def fail_waiting(self, error: EaselError) -> None:
        """Make every request of this process that waits for the GPU, now or later, fail with `error`."""
        self._threads.fail_all(error)

    def restore_before_exit(self, timeout_s: float, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """For the last process that ends: hand the GPU back and wait for it, at most `timeout_s` or until `is_hurried`,
        unless `restore` is `never` or generation mode is pinned. Its reconciler must run."""
        state = self.state_store.state()
        if not self.shares_gpu or self.policy.restore == "never" or _has_returned(state):
            return
        deadline = time.monotonic() + timeout_s

        def wait_while(condition: Callable[[State], bool]) -> None:
            while condition(self.state_store.state()) and time.monotonic() < deadline and not is_hurried():
                time.sleep(_EXIT_POLL_S)

        log.info("handing the GPU back to the LLM servers before the end; Ctrl-C to end at once")
        self._stopping.set()
        # A worker that was killed a moment ago may still hold the lock.
        wait_while(lambda _: not self.reconciler.is_leader)
        wait_while(_is_switching)
        with contextlib.suppress(EaselError), self.state_store.mutex():
            state = self.state_store.state()
            if not _is_switching(state) and not _has_returned(state):
                # Not `switch`: it refuses while ComfyUI has jobs, and this waits for them as long as there is time.
                wanted = SwitchRequest("inference", reason="Easel stops")
                self.state_store.update(lambda state: replace(state, wanted=wanted))
        wait_while(_is_switching)
        if not _has_returned(self.state_store.state()):
            log.warning("the GPU is not handed back yet; Easel continues when it is started again")

    # --- display -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The current state, claims and pace. Cheap."""
        requests, state = self._requests.all(), self.state_store.state()
        claims = self._all_claims()
        known = {job for request in requests for job in request.jobs}
        if any(claim.job not in known for claim in claims):
            # A request is listed before its jobs have claims: these may have come since.
            listed = {request.id: request for request in (*self._requests.all(), *requests)}
            requests = tuple(sorted(listed.values(), key=lambda request: request.since))
        situations = [queue.situation("generation") for queue in (self._queue, self._queue_without_gpu)]
        now = replace(situations[0], state=state)
        since = {job: request.since for request in requests for job in request.jobs}
        return Snapshot(
            state,
            claims,
            now.pace,
            idle_restore_at(now),
            requests,
            {
                ticket.job: waiting(ticket, situation, situation.now - since.get(ticket.job, situation.now))
                for situation in situations
                for ticket in situation.claims
                if ticket.kind == "ticket"
            },
        )

    def _has_requests(self, min_age_s: float) -> bool:
        now = self._clock()
        return any(request.uses_gpu and now - request.since >= min_age_s for request in self._requests.all())

    def _clean_up(self) -> None:
        without_gpu = self._queue_without_gpu.claims
        for claims in (self.claims, without_gpu):
            claims.remove_temporary_files()
        for claim in without_gpu.dead():
            without_gpu.remove(claim)
        self._requests.remove_temporary_files()
        jobs = [job for request in self._requests.all() for job in request.jobs]
        self.job_progress.keep_only([*jobs, *(claim.job for claim in self._all_claims())])
