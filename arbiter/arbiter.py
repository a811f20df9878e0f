"""The arbiter's door: leases, switchovers asked for by name, the pin. Callers say what they need and never look first."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from arbiter import policy as decide
from arbiter.job_progress import JobProgressStore
from arbiter.leases import Claim, ClaimFolder, OwnClaim
from arbiter.monitor import Monitor
from arbiter.reconciler import Reconciler
from arbiter.state_store import StateStore
from arbiter.switchover import Switchover
from arbiter.values import Mode, Pace, Policy, State, SwitchRequest
from errors import (
    ArbiterUnavailable,
    ComfyuiBusy,
    EaselError,
    GpuBusy,
    GpuImageMode,
    GpuPinned,
    GpuPreempted,
    JobNotFound,
    NotGenerating,
    RenderCancelled,
    RequestCancelled,
    StoreFull,
    SwitchFailed,
    SwitchInProgress,
)
from gpu_tenant import Tenant

log = logging.getLogger("easel.gpu")

_ASK_S = 0.25
"""Between two looks at whether the caller is still there"""
_NEAR_S, _STEP_S, _FAR_S = 0.01, 0.02, 0.25
_MEASURE_S = 1.0
_NOTICEABLE_S = 0.2
_WAKE = 4


@dataclass(frozen=True)
class Snapshot:
    """What the arbiter knows, at one moment, for showing. `claims` are in the order of their numbers."""

    state: State
    claims: tuple[Claim, ...]
    pace: Pace
    idle_restore_at: float | None


class Lease:
    """A shared hold on the present mode; as long as it lasts, the GPU does not change hands, save by force."""

    def __init__(self, arbiter: Arbiter, own_claim: OwnClaim, waited_s: float) -> None:
        self._arbiter, self._held = arbiter, own_claim
        self.waited_s, self._had_at = waited_s, time.monotonic()

    def is_void(self) -> bool:
        """Whether the owner took the GPU back by force or cancelled this job: stop, and submit nothing more."""
        return self._arbiter.voided(self._held.claim) is not None

    def ran(self, seconds: float) -> None:
        """Tell how long the engine worked on the job, for those who are told when to come again."""
        self._held.ran_s = seconds

    def show(self, step: int, steps: int) -> None:
        """Tell whoever watches how far the job is; of one that is done in no time nobody would see it."""
        if time.monotonic() - self._had_at >= _NOTICEABLE_S:
            self._arbiter.job_progress.show(self._held.claim.job, step, steps)


class Arbiter:
    """One for each process; they agree through `folder`. Safe for threads.

    Without `tenants` there is nobody to share with: leases are granted at once and there are no modes. `measure` gives
    the bytes that the engine could have without anybody leaving, None where nobody can tell.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tenants: Mapping[Mode, Tenant] | None = None,
        engine: Tenant | None = None,
        policy: Policy | None = None,
        measure: Callable[[], int | None] = lambda: None,
        engine_down: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`engine` alone is for an arbiter without `tenants`: it takes jobs of dead processes back."""
        self.is_wired = tenants is not None
        self.policy = policy or Policy()
        self.state_store, self.claims = StateStore(folder), ClaimFolder(folder / "holds")
        self.job_progress = JobProgressStore(folder / "jobs", clock)
        self._measure, self._clock = measure, clock
        everybody: dict[Mode, Tenant] = dict(tenants or {})
        if engine is not None:
            everybody.setdefault("generation", engine)
        self._tenants = everybody
        switchover = Switchover(
            self.state_store, self.claims, everybody, self.policy, free_memory=measure, clock=clock
        )
        monitor = Monitor(everybody.get("inference"), engine_down)
        self.reconciler = Reconciler(
            switchover, is_wired=self.is_wired, monitor=monitor, forget=self._forget_the_dead
        )
        self._waiting: dict[int, threading.Event] = {}
        self._dismissal: EaselError | None = None

    # --- leases ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(
        self,
        mode: Mode,
        *,
        job: str,
        timeout_s: float,
        need_bytes: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Lease]:
        """A hold on `mode` for one job, switching over first when that is needed and allowed.

        `job`: letters, digits, `-` and `_`; for a picture its prompt id. `need_bytes`: GPU memory that the job wants,
        0 for unknown. `cancelled` is asked some times a second while waiting.

        Raises GpuBusy when it is not had within `timeout_s`, GpuImageMode for an LLM request that the policy turns
        away, SwitchFailed, GpuPreempted, RenderCancelled, RequestCancelled, and StoreFull when the state directory
        cannot take a file more.
        """
        began = time.monotonic()
        own_claim = self._enter(mode, job, need_bytes)
        try:
            if own_claim.claim.kind == "ticket":
                self._wait(own_claim, began, timeout_s, cancelled)
            yield Lease(self, own_claim, time.monotonic() - began)
        except EaselError as error:
            reason = self.voided(own_claim.claim)
            if reason is None or (isinstance(error, RequestCancelled) and cancelled()):
                raise
            raise reason from error
        finally:
            self._leave(own_claim)

    def voided(self, claim: Claim) -> EaselError | None:
        """Why a hold counts no more although its holder is alive, or None."""
        if decide.is_revoked(self.state_store.state(), claim):
            return GpuPreempted("The owner took the GPU back by force; this request was dropped.")
        if self.job_progress.is_cancelled(claim.job):
            return RenderCancelled("The owner cancelled this render.", id=claim.job)
        return None

    def _enter(self, mode: Mode, job: str, need: int) -> OwnClaim:
        try:
            return self._taken(mode, job, need) if self.is_wired else self._taken_alone(mode, job, need)
        except OSError as error:
            raise StoreFull(f"The state directory cannot be written: {error.strerror}.") from error

    def _taken(self, mode: Mode, job: str, need: int) -> OwnClaim:
        """A lease if one can be had at once, else a ticket."""
        with self.state_store.mutex():
            state, claims = self.state_store.state(), self.claims.all()
            asks = decide.asks(mode, self.policy) and not self._may_coexist(state, mode)
            number = decide.next_number(state, claims)
            ticket = Claim("ticket", number, mode, asks, need, os.getpid(), job)
            at_once = decide.is_open(state, mode) and decide.is_first(claims, ticket, self.policy.depth)
            return self.claims.take(replace(ticket, kind="lease") if at_once else ticket)

    def _taken_alone(self, mode: Mode, job: str, need: int) -> OwnClaim:
        """With nobody to share with there is nothing to agree about; the lease only tells whose job it is."""
        number = time.time_ns() // 1_000_000
        return self.claims.take(Claim("lease", number, mode, True, need, os.getpid(), job))

    def _may_coexist(self, state: State, mode: Mode) -> bool:
        return self.policy.sharing == "coexist" and mode == "generation" and state.mode == "inference"

    def _leave(self, own_claim: OwnClaim) -> None:
        claim = own_claim.claim
        own_claim.end()
        if claim.mode == "generation":
            self.job_progress.forget(claim.job)
            self.state_store.note_use(self._clock(), own_claim.ran_s)
        self._call_next()

    def _call_next(self) -> None:
        """Wake those of this process whose turn may have come."""
        for number in sorted(self._waiting)[:_WAKE]:
            event = self._waiting.get(number)
            if event is not None:
                event.set()

    # --- waiting -----------------------------------------------------------------------------------

    def _wait(
        self, own_claim: OwnClaim, began: float, timeout_s: float, cancelled: Callable[[], bool]
    ) -> None:
        state, event = self.state_store.state(), threading.Event()
        heard = state.switch.number - (state.under_way is not None) if state.switch else 0
        self._waiting[own_claim.claim.number] = event
        self.reconciler.nudge()
        ask_at = measure_at = began
        try:
            while not self._granted(own_claim):
                now = time.monotonic()
                if now >= ask_at or self._dismissal is not None:
                    ask_at = now + _ASK_S
                    self._check_wanted(own_claim.claim, cancelled)
                if now >= measure_at:
                    measure_at = now + _MEASURE_S
                    self.state_store.check_writable()
                    if self._granted_beside(own_claim):
                        return
                self._check_hope(own_claim.claim, heard)
                if now - began >= timeout_s:
                    raise self._too_late(own_claim.claim)
                event.wait(min(self._patience_s(own_claim.claim), max(0.0, began + timeout_s - now)))
                event.clear()
        finally:
            self._waiting.pop(own_claim.claim.number, None)

    def _granted(self, own_claim: OwnClaim) -> bool:
        """Turn the ticket into a lease if it is its turn."""
        if not self._may_have(own_claim.claim):
            return False
        with self.state_store.mutex():
            if not self._may_have(own_claim.claim):
                return False
            own_claim.change(kind="lease")
            return True

    def _may_have(self, mine: Claim) -> bool:
        state = self.state_store.state()
        if not decide.is_open(state, mine.mode) or decide.is_revoked(state, mine):
            return False
        return decide.is_first(self.claims.all(), mine, self.policy.depth)

    def _granted_beside(self, own_claim: OwnClaim) -> bool:
        """Room beside the LLMs is a reason not to take the GPU from them; no room is one to ask for it."""
        mine = own_claim.claim
        if mine.asks or not self._may_coexist(self.state_store.state(), mine.mode):
            return False
        room = self._room()
        fits = room is not None and 0 < mine.need <= room - self.policy.reserve_bytes
        with self.state_store.mutex():
            state, claims = self.state_store.state(), self.claims.all()
            if not fits:
                own_claim.change(asks=True)
                return False
            calm = state.under_way is None and state.wanted is None and state.mode == "inference"
            if not calm or not decide.is_first(claims, mine, self.policy.depth):
                return False
            own_claim.change(kind="lease")
            return True

    def _room(self) -> int | None:
        try:
            return self._measure()
        except EaselError:
            return None

    def _patience_s(self, mine: Claim) -> float:
        """Who is far back need not look often; who is called in this process is woken."""
        if mine.mode == "inference":
            return _STEP_S
        return min(_FAR_S, _NEAR_S + _STEP_S * decide.place(self.claims.all(), mine))

    def _check_wanted(self, mine: Claim, cancelled: Callable[[], bool]) -> None:
        if self._dismissal is not None:
            raise self._dismissal
        if cancelled():
            raise RequestCancelled("The caller gave the job up while it waited for the GPU.")
        reason = self.voided(mine)
        if reason is not None:
            raise reason

    def _check_hope(self, mine: Claim, heard: int) -> None:
        """`heard`: the number of the last switch that had ended when we came."""
        state = self.state_store.state()
        if decide.turns_away(state, mine.mode, self.policy):
            raise GpuImageMode(
                "ComfyUI has the GPU" + (", and image mode is pinned." if state.pinned else "."),
                retry_after_s=self._retry_after(mine),
            )
        switch = state.switch
        if switch and switch.error and switch.ended and switch.number > heard and switch.target == mine.mode:
            raise SwitchFailed(
                f"The GPU could not be handed over, {switch.error['phase']} failed: {switch.error['message']}",
                target=mine.mode,
                phase=switch.error["phase"],
                cause=switch.error["code"],
                retry_after_s=self._retry_after(mine),
            )

    def _too_late(self, mine: Claim) -> GpuBusy:
        state, claims = self.state_store.state(), self.claims.all()
        why = (
            "others are first" if decide.is_open(state, mine.mode) else "the GPU did not change hands in time"
        )
        return GpuBusy(
            f"The GPU was not free in time: {why}.",
            place=decide.place(claims, mine),
            retry_after_s=self._retry_after(mine),
        )

    def _retry_after(self, mine: Claim) -> int | None:
        return self.seconds_until(mine.mode, mine)

    def seconds_until(self, mode: Mode, mine: Claim | None = None) -> int | None:
        """How long until a new request for `mode` can have its turn, in whole seconds; None when nobody can say."""
        now = decide.Now(
            self.state_store.state(), self.claims.all(), self.state_store.pace(), self.policy, self._clock()
        )
        return decide.seconds_until(mode, mine, now)

    # --- what the owner asks for -------------------------------------------------------------------

    def switch(self, mode: Mode, *, force: bool = False, pin: bool | None = None) -> str:
        """Ask for a switchover: "switching", or "noop" when `mode` is in force already (a pin is then applied).

        `force` drops what runs and waits. Raises ArbiterUnavailable, SwitchInProgress, GpuPinned and ComfyuiBusy.
        """
        self._must_be_wired()
        at_work = self._at_work() if mode == "inference" and not force else 0
        with self.state_store.mutex():
            state = self.state_store.state()
            if state.under_way is not None or state.wanted is not None:
                raise self._in_progress(state)
            if state.mode == mode:
                if pin is not None and mode == "generation":
                    self.state_store.update(lambda state: replace(state, pinned=pin))
                return "noop"
            if mode == "inference" and not force:
                self._refuse_if_pinned(state)
                self._refuse_if_busy(at_work)
            self.state_store.update(
                lambda state: replace(state, wanted=SwitchRequest(mode, force, bool(pin)))
            )
        self.reconciler.nudge()
        return "switching"

    def pin(self, pinned: bool) -> None:
        """Hold image mode against every switch but a forced one, or let it go. Raises ArbiterUnavailable, NotGenerating
        and SwitchInProgress."""
        self._must_be_wired()
        with self.state_store.mutex():
            state = self.state_store.state()
            if state.under_way is not None or state.wanted is not None:
                raise self._in_progress(state)  # whose end would overwrite it
            if pinned and state.mode != "generation":
                raise NotGenerating("The LLM servers have the GPU: there is no image mode to pin.")
            self.state_store.update(lambda state: replace(state, pinned=pinned))

    def cancel(self, job: str | None) -> tuple[str, ...]:
        """Cancel one job that waits or runs in any process, or all of them, those that others sent to the engine too;
        gives the ids of ours. Raises JobNotFound."""
        jobs = tuple(
            claim.job
            for claim in self.claims.all()
            if claim.mode == "generation" and job in (None, claim.job)
        )
        if job is not None and not jobs:
            raise JobNotFound(f"No job {job!r} waits or runs.", id=job)
        try:
            for name in jobs:
                self.job_progress.cancel(name)
        except OSError as error:
            raise StoreFull(f"The state directory cannot be written: {error.strerror}.") from error
        if job is None and "generation" in self._tenants:
            with contextlib.suppress(EaselError):  # ours stop by themselves, too
                self._tenants["generation"].drop(None)
        self._call_next()
        return jobs

    def _must_be_wired(self) -> None:
        if not self.is_wired:
            raise ArbiterUnavailable("No LLM stack is configured, so there is nobody to share the GPU with.")

    def _in_progress(self, state: State) -> SwitchInProgress:
        heading = (
            state.under_way.target if state.under_way else state.wanted.mode if state.wanted else state.mode
        )
        return SwitchInProgress(
            f"A switchover to {heading} is under way.",
            target=heading,
            retry_after_s=self.seconds_until(heading),
        )

    def _refuse_if_pinned(self, state: State) -> None:
        if state.pinned:
            raise GpuPinned("Image mode is pinned; unpin it first, or send force.")

    def _refuse_if_busy(self, at_work: int) -> None:
        claims = self.claims.all()
        ours = len(decide.of(claims, "lease", "generation"))
        jobs, waiting = max(at_work, ours), len(decide.of(claims, "ticket", "generation"))
        if jobs or waiting:
            queue = {"running": min(1, jobs), "pending": max(0, jobs - 1) + waiting}
            raise ComfyuiBusy(
                "ComfyUI still has pictures to draw; wait, or send force to drop them.",
                queue=queue,
                retry_after_s=self.seconds_until("generation"),
            )

    def _at_work(self) -> int:
        try:
            return self._tenants["generation"].busy() or 0
        except EaselError:
            return 0

    def dismiss(self, reason: EaselError) -> None:
        """Make everybody in this process who waits for the GPU, now or later, fail with `reason`."""
        self._dismissal = reason
        for event in list(self._waiting.values()):
            event.set()

    def give_back(self) -> None:
        """For a process that leaves and nobody is there to do it later: pass the GPU back, as `restore` says it should be
        one day. Waits for it."""
        state = self.state_store.state()
        stays = state.mode == "inference" or state.pinned or self.policy.restore == "never"
        if not self.is_wired or not self.reconciler.is_leader or stays:
            return
        with contextlib.suppress(EaselError):
            self.switch("inference")
        while (state := self.state_store.state()).under_way or state.wanted:
            time.sleep(_STEP_S)

    # --- for showing -------------------------------------------------------------------------------

    def view(self) -> Snapshot:
        """What is true now, for a status page. Cheap."""
        state, pace = self.state_store.state(), self.state_store.pace()
        return Snapshot(state, self.claims.all(), pace, decide.idle_restore_at(state, pace, self.policy))

    def _forget_the_dead(self) -> None:
        self.claims.sweep()
        self.job_progress.sweep(claim.job for claim in self.claims.all())
