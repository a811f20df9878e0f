"""The arbiter's interface: leases, explicit switchovers, the pin. Callers say which mode they need; they do not check
the current mode first."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arbiter.active_requests import ActiveRequest, ActiveRequests, Sender
from arbiter.event_log import EventLog
from arbiter.fair_queue import NO_TURNS, flow_of, has_turn, queue_order, queue_position
from arbiter.job_progress import JobProgressStore
from arbiter.leases import Claim, ClaimFolder, OwnClaim
from arbiter.monitor import Monitor, QuickCheck
from arbiter.policy import (
    Situation,
    after_llm_load,
    has_failed,
    idle_restore_at,
    is_open,
    is_refused,
    is_revoked,
    may_trigger_switch,
    next_claim_number,
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
from errors import (
    ArbiterUnavailable,
    ComfyuiBusy,
    EaselError,
    GpuBusy,
    GpuInGenerationMode,
    GpuPinned,
    GpuPreempted,
    JobNotFound,
    NotGenerating,
    RenderCancelled,
    RequestCancelled,
    SwitchFailed,
    SwitchInProgress,
)
from gpu_tenant import Tenant
from observer import Observer

log = logging.getLogger("easel.gpu")

_CANCEL_CHECK_INTERVAL_S = 0.25
"""Between two checks whether a waiting request was cancelled"""
_MIN_POLL_INTERVAL_S, _POLL_STEP_S, _MAX_POLL_INTERVAL_S = 0.01, 0.02, 0.25
_MEASURE_INTERVAL_S = 1.0
"""Between two measurements of free memory (`coexist`), and between two checks that the state can be written"""
_PROGRESS_DELAY_S = 0.2
"""Progress of a shorter job is not written: it would be over before a client could read it"""
_WAIT_REPORT_DELAY_S = 0.25
"""A shorter wait is not reported"""
_WAIT_REPORT_INTERVAL_S = 5.0
_MAX_WOKEN = 4


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


class WaitReport:
    """Calls `on_wait` when what a request waits for has changed, and every few seconds."""

    def __init__(self, on_wait: Callable[[Waiting], None]) -> None:
        self._on_wait, self._last = on_wait, ""
        self._next_at = time.monotonic() + _WAIT_REPORT_DELAY_S

    def __call__(self, now_waiting: Waiting) -> None:
        now = time.monotonic()
        if now >= self._next_at or (self._last and now_waiting.waits_for != self._last):
            self._last, self._next_at = now_waiting.waits_for, now + _WAIT_REPORT_INTERVAL_S
            self._on_wait(now_waiting)


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


@dataclass(frozen=True)
class _Line:
    """Claims that wait for each other. `needs_mode`: they are granted only in their mode."""

    claims: ClaimFolder
    turns: TurnStore
    needs_mode: bool


def _number_without_mode() -> int:
    """Higher than any of the claims that need a mode, so it is never revoked."""
    return time.time_ns() // 1_000_000


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
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`event_log_bytes`: the most that the event log keeps; 0: none. `engine` is for an arbiter without `tenants`,
        which cancels the jobs of dead processes in it. `observer` is told of each switch that this process has run."""
        self.shares_gpu = tenants is not None
        self.policy = policy or Policy()
        self.state_store, self.claims = StateStore(folder), ClaimFolder(folder / "holds")
        self.claims_without_gpu = ClaimFolder(folder / "holds_without_gpu")
        """Those of jobs that need no GPU: no decision about it depends on them"""
        self._line = _Line(self.claims, TurnStore(folder / "turns.json"), self.shares_gpu)
        turns_without_gpu = TurnStore(folder / "turns_without_gpu.json")
        self._line_without_gpu = _Line(self.claims_without_gpu, turns_without_gpu, False)
        self.events = EventLog(folder / "events.jsonl", event_log_bytes, clock)
        self.switch_history = SwitchHistory(self.events.path)
        self.job_progress = JobProgressStore(folder / "jobs", clock)
        self._requests = ActiveRequests(folder / "requests", clock)
        self._available_bytes, self._engine_uses_gpu, self._clock = available_bytes, engine_uses_gpu, clock
        self._tenants: dict[Mode, Tenant] = dict(tenants or {})
        if engine is not None:
            self._tenants.setdefault("generation", engine)
        self._stopping = threading.Event()
        switchover = Switchover(
            self.state_store,
            self.claims,
            self._tenants,
            self.policy,
            available_bytes=available_bytes,
            has_requests=self._has_requests,
            stopping=self._stopping,
            observer=observer or Observer(),
            clock=clock,
            events=self.events,
        )
        llms = self._tenants.get("inference")
        monitor = Monitor(llms, engine_down)
        self._llm_check = None if llms is None else QuickCheck(llms)
        self.reconciler = Reconciler(
            switchover,
            shares_gpu=self.shares_gpu,
            monitor=monitor,
            engine_uses_gpu=engine_uses_gpu,
            clean_up=self._clean_up,
            turns=self._line.turns.turns,
        )
        self._waiting: dict[str, threading.Event] = {}
        """job -> the event that wakes its thread"""
        self._stop_error: EaselError | None = None

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
                self._wait(own_claim, started_at, timeout_s, cancelled, on_wait)
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
        uses_gpu = self._line_of(own_claim) is self._line
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
        line = self._line if uses_gpu or not self.shares_gpu else self._line_without_gpu
        try:
            if not line.needs_mode and not flow:
                return self._lease(line, mode, job, need)
            if line.needs_mode and mode == "generation":
                self._look_for_llms()
            return self._lease_or_ticket(line, mode, job, need, flow)
        except OSError as error:
            raise not_writable(error) from error

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
            plan = after_llm_load(self._situation(self._line, "generation"), residents, is_in_use=is_in_use)
            if plan is not None:
                log.info("before a picture: %s", plan.reason)
                wanted = SwitchRequest(plan.target, pin=plan.pin, reason=plan.reason)
                self.state_store.update(lambda state: replace(state, wanted=wanted))

    def _lease_or_ticket(self, line: _Line, mode: Mode, job: str, need: int, flow: str) -> OwnClaim:
        """A lease if it can be granted at once, else a ticket."""
        with self.state_store.mutex():
            state, claims = self.state_store.state(), line.claims.all()
            triggers = may_trigger_switch(mode, self.policy) and not self._may_coexist(state, mode)
            turns = line.turns.turns() if flow else NO_TURNS
            number = next_claim_number(state, claims, turns)
            if not line.needs_mode:
                number = max(number, _number_without_mode())
            ticket = Claim("ticket", number, mode, triggers, need, os.getpid(), job, flow)
            if not self._can_grant(line, ticket, claims):
                return line.claims.create(ticket)
            lease = line.claims.create(replace(ticket, kind="lease"))
            self._begin_turn(line, lease.claim, claims)
            return lease

    def _lease(self, line: _Line, mode: Mode, job: str, need: int) -> OwnClaim:
        """If the GPU is not shared or not used, processes need not agree on a number; the lease only names the job and
        its process."""
        return line.claims.create(Claim("lease", _number_without_mode(), mode, True, need, os.getpid(), job))

    def _may_coexist(self, state: State, mode: Mode) -> bool:
        return self.policy.sharing == "coexist" and mode == "generation" and state.mode == "inference"

    def _end_claim(self, own_claim: OwnClaim) -> None:
        claim = own_claim.claim
        own_claim.end()
        if claim.flow and claim.kind == "lease":
            with contextlib.suppress(EaselError), self.state_store.mutex():
                self._line_of(own_claim).turns.end(claim.flow, self._clock())
        if claim.mode == "generation":
            self.job_progress.remove(claim.job)
            self.state_store.record_use(self._clock(), own_claim.run_s)
        self._wake_next()

    def _wake_next(self) -> None:
        """Wake the first waiting requests of this process: it may be their turn."""
        if not self._waiting:
            return
        for line in (self._line, self._line_without_gpu):
            for ticket in queue_order(line.claims.all(), "generation", line.turns.turns())[:_MAX_WOKEN]:
                event = self._waiting.get(ticket.job)
                if event is not None:
                    event.set()

    # --- waiting -----------------------------------------------------------------------------------

    def _wait(
        self,
        own_claim: OwnClaim,
        started_at: float,
        timeout_s: float,
        cancelled: Callable[[], bool],
        on_wait: Callable[[Waiting], None],
    ) -> None:
        state, event, line = self.state_store.state(), threading.Event(), self._line_of(own_claim)
        last_ended = state.switch.number - (state.active_switch is not None) if state.switch else 0
        self._waiting[own_claim.claim.job] = event
        self.reconciler.wake()
        next_cancel_check = next_measurement = started_at
        report = WaitReport(on_wait)
        try:
            while not self._try_grant(own_claim):
                now = time.monotonic()
                if now >= next_cancel_check or self._stop_error is not None:
                    next_cancel_check = now + _CANCEL_CHECK_INTERVAL_S
                    self._raise_if_cancelled(own_claim.claim, cancelled)
                    situation = self._situation(line, own_claim.claim.mode)
                    report(waiting(own_claim.claim, situation, now - started_at))
                if now >= next_measurement:
                    next_measurement = now + _MEASURE_INTERVAL_S
                    self.state_store.check_writable()
                    if self._try_grant_coexisting(own_claim):
                        return
                self._raise_if_refused_or_failed(own_claim.claim, last_ended)
                if now - started_at >= timeout_s:
                    raise self._wait_timeout(line, own_claim.claim)
                event.wait(
                    min(self._poll_interval_s(line, own_claim.claim), max(0.0, started_at + timeout_s - now))
                )
                event.clear()
        finally:
            self._waiting.pop(own_claim.claim.job, None)

    def _try_grant(self, own_claim: OwnClaim) -> bool:
        """Turn the ticket into a lease if it is its turn."""
        line = self._line_of(own_claim)
        if not self._can_grant(line, own_claim.claim, line.claims.all()):
            return False
        with self.state_store.mutex():
            claims = line.claims.all()
            if not self._can_grant(line, own_claim.claim, claims):
                return False
            own_claim.change(kind="lease")
            self._begin_turn(line, own_claim.claim, claims)
            return True

    def _can_grant(self, line: _Line, ticket: Claim, claims: Sequence[Claim]) -> bool:
        state = self.state_store.state()
        if line.needs_mode and (not is_open(state, ticket.mode) or is_revoked(state, ticket)):
            return False
        return self._has_turn(line, ticket, claims)

    def _has_turn(self, line: _Line, ticket: Claim, claims: Sequence[Claim]) -> bool:
        turns = line.turns.turns() if ticket.flow else NO_TURNS
        return has_turn(claims, ticket, self.policy.depth, turns, self._clock())

    def _begin_turn(self, line: _Line, claim: Claim, claims: Sequence[Claim]) -> None:
        if claim.flow:
            line.turns.begin(claim.flow, (*claims, claim), self._clock())

    def _line_of(self, own_claim: OwnClaim) -> _Line:
        return self._line if own_claim.folder == self.claims.folder else self._line_without_gpu

    def _try_grant_coexisting(self, own_claim: OwnClaim) -> bool:
        """With `coexist`: grant the lease in inference mode if the job fits beside the LLMs; if it does not, let the
        ticket trigger a switch."""
        ticket = own_claim.claim
        if ticket.triggers_switch or not self._may_coexist(self.state_store.state(), ticket.mode):
            return False
        available = self._read_available_bytes()
        fits = available is not None and 0 < ticket.need <= available - self.policy.reserve_bytes
        with self.state_store.mutex():
            state, claims = self.state_store.state(), self.claims.all()
            if not fits:
                own_claim.change(triggers_switch=True)
                return False
            may_grant = state.active_switch is None and state.wanted is None and state.mode == "inference"
            if not may_grant or not self._has_turn(self._line, ticket, claims):
                return False
            own_claim.change(kind="lease")
            self._begin_turn(self._line, own_claim.claim, claims)
            return True

    def _read_available_bytes(self) -> int | None:
        try:
            return self._available_bytes()
        except EaselError:
            return None

    def _poll_interval_s(self, line: _Line, ticket: Claim) -> float:
        """Longer at the back of the queue. A request whose turn comes through this process is woken earlier."""
        if ticket.mode == "inference":
            return _POLL_STEP_S
        position = queue_position(line.claims.all(), ticket, line.turns.turns())
        return min(_MAX_POLL_INTERVAL_S, _MIN_POLL_INTERVAL_S + _POLL_STEP_S * position)

    def _raise_if_cancelled(self, ticket: Claim, cancelled: Callable[[], bool]) -> None:
        if self._stop_error is not None:
            raise self._stop_error
        if cancelled():
            raise RequestCancelled("The request was cancelled while it waited for the GPU.")
        reason = self.void_reason(ticket)
        if reason is not None:
            raise reason

    def _raise_if_refused_or_failed(self, ticket: Claim, last_ended: int) -> None:
        """Raise if the policy refuses the request or its switch failed. `last_ended`: the number of the last switch
        that had ended when the request began to wait."""
        state = self.state_store.state()
        if is_refused(state, ticket.mode, self.policy):
            raise GpuInGenerationMode(
                "ComfyUI has the GPU" + (", and generation mode is pinned." if state.pinned else "."),
                retry_after_s=self.seconds_until(ticket.mode, ticket),
            )
        switch = state.switch
        if switch is None or not switch.error or not switch.ended:
            return
        if switch.number > last_ended and switch.target == ticket.mode:
            raise SwitchFailed(
                f"The GPU could not be handed over, {switch.error['phase']} failed: {switch.error['message']}",
                target=ticket.mode,
                phase=switch.error["phase"],
                cause=switch.error["code"],
                retry_after_s=self.seconds_until(ticket.mode, ticket),
            )

    def _wait_timeout(self, line: _Line, ticket: Claim) -> GpuBusy:
        situation = self._situation(line, ticket.mode)
        is_queued = is_open(situation.state, ticket.mode)
        reason = "other requests came first" if is_queued else "it was not handed over in time"
        return GpuBusy(
            f"The GPU was not free in time: {reason}.",
            place=queue_position(situation.claims, ticket, situation.turns),
            retry_after_s=seconds_until(ticket.mode, ticket, situation),
        )

    def seconds_until(self, mode: Mode, ticket: Claim | None = None) -> int | None:
        """How long until a new request for `mode`, or the one with `ticket`, can run, in whole seconds; None if
        unknown."""
        situation = self._situation(self._line, mode)
        if ticket is None and mode == "generation":
            situation = replace(situation, later_jobs=self._later_jobs())
        return seconds_until(mode, ticket, situation)

    def _all_claims(self) -> tuple[Claim, ...]:
        """Those of jobs that need no GPU as well."""
        return (*self.claims.all(), *self.claims_without_gpu.all())

    def _later_jobs(self) -> int:
        """How many jobs of the present requests come after the ones that have a claim."""
        claimed = {claim.job for claim in self.claims.all()}
        count = 0
        for request in self._requests.all():
            present = [index for index, job in enumerate(request.jobs) if job in claimed]
            count += len(request.jobs) - 1 - present[-1] if present else 0
        return count

    def _situation(self, line: _Line, mode: Mode) -> Situation:
        """Of the claims of `line`; if they need no mode, in the state in which `mode` is open."""
        return Situation(
            self.state_store.state() if line.needs_mode else State(mode),
            line.claims.all(),
            self.state_store.pace(),
            self.policy,
            self._clock(),
            turns=line.turns.turns(),
        )

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
        self._wake_next()
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
        self._stop_error = error
        for event in list(self._waiting.values()):
            event.set()

    def restore_before_exit(self, timeout_s: float, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """For the last process that ends: hand the GPU back and wait for it, at most `timeout_s` or until `is_hurried`,
        unless `restore` is `never` or generation mode is pinned. Its reconciler must run."""
        state = self.state_store.state()
        if not self.shares_gpu or self.policy.restore == "never" or _has_returned(state):
            return
        deadline = time.monotonic() + timeout_s

        def wait_while(condition: Callable[[State], bool]) -> None:
            while condition(self.state_store.state()) and time.monotonic() < deadline and not is_hurried():
                time.sleep(_POLL_STEP_S)

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
        lines = [self._situation(line, "generation") for line in (self._line, self._line_without_gpu)]
        now = replace(lines[0], state=state)
        since = {job: request.since for request in requests for job in request.jobs}
        return Snapshot(
            state,
            self._all_claims(),
            now.pace,
            idle_restore_at(now),
            requests,
            {
                ticket.job: waiting(ticket, line, line.now - since.get(ticket.job, line.now))
                for line in lines
                for ticket in line.claims
                if ticket.kind == "ticket"
            },
        )

    def _has_requests(self, min_age_s: float) -> bool:
        now = self._clock()
        return any(request.uses_gpu and now - request.since >= min_age_s for request in self._requests.all())

    def _clean_up(self) -> None:
        for claims in (self.claims, self.claims_without_gpu):
            claims.remove_temporary_files()
        for claim in self.claims_without_gpu.dead():
            self.claims_without_gpu.remove(claim)
        self._requests.remove_temporary_files()
        jobs = [job for request in self._requests.all() for job in request.jobs]
        self.job_progress.keep_only([*jobs, *(claim.job for claim in self._all_claims())])
