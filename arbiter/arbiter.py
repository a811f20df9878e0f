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
from arbiter.board import Board
from arbiter.books import Books
from arbiter.holds import Held, Hold, Holds
from arbiter.lookout import Lookout
from arbiter.reconciler import Reconciler
from arbiter.switchover import Switchover
from arbiter.values import Mode, Pace, Policy, State, Wish
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
from tenant import Tenant

log = logging.getLogger("easel.gpu")

_ASK_S = 0.25
"""Between two looks at whether the caller is still there"""
_NEAR_S, _STEP_S, _FAR_S = 0.01, 0.02, 0.25
_MEASURE_S = 1.0
_NOTICEABLE_S = 0.2
_WAKE = 4


@dataclass(frozen=True)
class View:
    """What the arbiter knows, at one moment, for showing. `holds` are in the order of their numbers."""

    state: State
    holds: tuple[Hold, ...]
    pace: Pace
    idle_restore_at: float | None


class Lease:
    """A shared hold on the present mode; as long as it lasts, the GPU does not change hands, save by force."""

    def __init__(self, arbiter: Arbiter, held: Held, waited_s: float) -> None:
        self._arbiter, self._held = arbiter, held
        self.waited_s, self._had_at = waited_s, time.monotonic()

    def is_void(self) -> bool:
        """Whether the owner took the GPU back by force or cancelled this job: stop, and submit nothing more."""
        return self._arbiter.voided(self._held.hold) is not None

    def ran(self, seconds: float) -> None:
        """Tell how long the engine worked on the job, for those who are told when to come again."""
        self._held.ran_s = seconds

    def show(self, step: int, steps: int) -> None:
        """Tell whoever watches how far the job is; of one that is done in no time nobody would see it."""
        if time.monotonic() - self._had_at >= _NOTICEABLE_S:
            self._arbiter.board.show(self._held.hold.job, step, steps)


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
        self.books, self.holds = Books(folder), Holds(folder / "holds")
        self.board = Board(folder / "jobs", clock)
        self._measure, self._clock = measure, clock
        everybody: dict[Mode, Tenant] = dict(tenants or {})
        if engine is not None:
            everybody.setdefault("generation", engine)
        self._tenants = everybody
        switchover = Switchover(
            self.books, self.holds, everybody, self.policy, free_memory=measure, clock=clock
        )
        lookout = Lookout(everybody.get("inference"), engine_down)
        self.reconciler = Reconciler(
            switchover, is_wired=self.is_wired, lookout=lookout, forget=self._forget_the_dead
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
        held = self._enter(mode, job, need_bytes)
        try:
            if held.hold.kind == "ticket":
                self._wait(held, began, timeout_s, cancelled)
            yield Lease(self, held, time.monotonic() - began)
        except EaselError as fault:
            reason = self.voided(held.hold)
            if reason is None or (isinstance(fault, RequestCancelled) and cancelled()):
                raise
            raise reason from fault
        finally:
            self._leave(held)

    def voided(self, hold: Hold) -> EaselError | None:
        """Why a hold counts no more although its holder is alive, or None."""
        if decide.is_revoked(self.books.state(), hold):
            return GpuPreempted("The owner took the GPU back by force; this request was dropped.")
        if self.board.is_cancelled(hold.job):
            return RenderCancelled("The owner cancelled this render.", id=hold.job)
        return None

    def _enter(self, mode: Mode, job: str, need: int) -> Held:
        try:
            return self._taken(mode, job, need) if self.is_wired else self._taken_alone(mode, job, need)
        except OSError as fault:
            raise StoreFull(f"The state directory cannot be written: {fault.strerror}.") from fault

    def _taken(self, mode: Mode, job: str, need: int) -> Held:
        """A lease if one can be had at once, else a ticket."""
        with self.books.mutex():
            state, holds = self.books.state(), self.holds.all()
            asks = decide.asks(mode, self.policy) and not self._may_coexist(state, mode)
            number = decide.next_number(state, holds)
            ticket = Hold("ticket", number, mode, asks, need, os.getpid(), job)
            at_once = decide.is_open(state, mode) and decide.is_first(holds, ticket, self.policy.depth)
            return self.holds.take(replace(ticket, kind="lease") if at_once else ticket)

    def _taken_alone(self, mode: Mode, job: str, need: int) -> Held:
        """With nobody to share with there is nothing to agree about; the lease only tells whose job it is."""
        number = time.time_ns() // 1_000_000
        return self.holds.take(Hold("lease", number, mode, True, need, os.getpid(), job))

    def _may_coexist(self, state: State, mode: Mode) -> bool:
        return self.policy.sharing == "coexist" and mode == "generation" and state.mode == "inference"

    def _leave(self, held: Held) -> None:
        hold = held.hold
        held.end()
        if hold.mode == "generation":
            self.board.forget(hold.job)
            self.books.note_use(self._clock(), held.ran_s)
        self._call_next()

    def _call_next(self) -> None:
        """Wake those of this process whose turn may have come."""
        for number in sorted(self._waiting)[:_WAKE]:
            event = self._waiting.get(number)
            if event is not None:
                event.set()

    # --- waiting -----------------------------------------------------------------------------------

    def _wait(self, held: Held, began: float, timeout_s: float, cancelled: Callable[[], bool]) -> None:
        state, event = self.books.state(), threading.Event()
        heard = state.switch.number - (state.under_way is not None) if state.switch else 0
        self._waiting[held.hold.number] = event
        self.reconciler.nudge()
        ask_at = measure_at = began
        try:
            while not self._granted(held):
                now = time.monotonic()
                if now >= ask_at or self._dismissal is not None:
                    ask_at = now + _ASK_S
                    self._check_wanted(held.hold, cancelled)
                if now >= measure_at:
                    measure_at = now + _MEASURE_S
                    self.books.check_writable()
                    if self._granted_beside(held):
                        return
                self._check_hope(held.hold, heard)
                if now - began >= timeout_s:
                    raise self._too_late(held.hold)
                event.wait(min(self._patience_s(held.hold), max(0.0, began + timeout_s - now)))
                event.clear()
        finally:
            self._waiting.pop(held.hold.number, None)

    def _granted(self, held: Held) -> bool:
        """Turn the ticket into a lease if it is its turn."""
        if not self._may_have(held.hold):
            return False
        with self.books.mutex():
            if not self._may_have(held.hold):
                return False
            held.change(kind="lease")
            return True

    def _may_have(self, mine: Hold) -> bool:
        state = self.books.state()
        if not decide.is_open(state, mine.mode) or decide.is_revoked(state, mine):
            return False
        return decide.is_first(self.holds.all(), mine, self.policy.depth)

    def _granted_beside(self, held: Held) -> bool:
        """Room beside the LLMs is a reason not to take the GPU from them; no room is one to ask for it."""
        mine = held.hold
        if mine.asks or not self._may_coexist(self.books.state(), mine.mode):
            return False
        room = self._room()
        fits = room is not None and 0 < mine.need <= room - self.policy.reserve_bytes
        with self.books.mutex():
            state, holds = self.books.state(), self.holds.all()
            if not fits:
                held.change(asks=True)
                return False
            calm = state.under_way is None and state.wanted is None and state.mode == "inference"
            if not calm or not decide.is_first(holds, mine, self.policy.depth):
                return False
            held.change(kind="lease")
            return True

    def _room(self) -> int | None:
        try:
            return self._measure()
        except EaselError:
            return None

    def _patience_s(self, mine: Hold) -> float:
        """Who is far back need not look often; who is called in this process is woken."""
        if mine.mode == "inference":
            return _STEP_S
        return min(_FAR_S, _NEAR_S + _STEP_S * decide.place(self.holds.all(), mine))

    def _check_wanted(self, mine: Hold, cancelled: Callable[[], bool]) -> None:
        if self._dismissal is not None:
            raise self._dismissal
        if cancelled():
            raise RequestCancelled("The caller gave the job up while it waited for the GPU.")
        reason = self.voided(mine)
        if reason is not None:
            raise reason

    def _check_hope(self, mine: Hold, heard: int) -> None:
        """`heard`: the number of the last switch that had ended when we came."""
        state = self.books.state()
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

    def _too_late(self, mine: Hold) -> GpuBusy:
        state, holds = self.books.state(), self.holds.all()
        why = (
            "others are first" if decide.is_open(state, mine.mode) else "the GPU did not change hands in time"
        )
        return GpuBusy(
            f"The GPU was not free in time: {why}.",
            place=decide.place(holds, mine),
            retry_after_s=self._retry_after(mine),
        )

    def _retry_after(self, mine: Hold) -> int | None:
        return self.seconds_until(mine.mode, mine)

    def seconds_until(self, mode: Mode, mine: Hold | None = None) -> int | None:
        """How long until a new request for `mode` can have its turn, in whole seconds; None when nobody can say."""
        now = decide.Now(self.books.state(), self.holds.all(), self.books.pace(), self.policy, self._clock())
        return decide.seconds_until(mode, mine, now)

    # --- what the owner asks for -------------------------------------------------------------------

    def switch(self, mode: Mode, *, force: bool = False, pin: bool | None = None) -> str:
        """Ask for a switchover: "switching", or "noop" when `mode` is in force already (a pin is then applied).

        `force` drops what runs and waits. Raises ArbiterUnavailable, SwitchInProgress, GpuPinned and ComfyuiBusy.
        """
        self._must_be_wired()
        at_work = self._at_work() if mode == "inference" and not force else 0
        with self.books.mutex():
            state = self.books.state()
            if state.under_way is not None or state.wanted is not None:
                raise self._in_progress(state)
            if state.mode == mode:
                if pin is not None and mode == "generation":
                    self.books.update(lambda state: replace(state, pinned=pin))
                return "noop"
            if mode == "inference" and not force:
                self._refuse_if_pinned(state)
                self._refuse_if_busy(at_work)
            self.books.update(lambda state: replace(state, wanted=Wish(mode, force, bool(pin))))
        self.reconciler.nudge()
        return "switching"

    def pin(self, pinned: bool) -> None:
        """Hold image mode against every switch but a forced one, or let it go. Raises ArbiterUnavailable, NotGenerating
        and SwitchInProgress."""
        self._must_be_wired()
        with self.books.mutex():
            state = self.books.state()
            if state.under_way is not None or state.wanted is not None:
                raise self._in_progress(state)  # whose end would overwrite it
            if pinned and state.mode != "generation":
                raise NotGenerating("The LLM servers have the GPU: there is no image mode to pin.")
            self.books.update(lambda state: replace(state, pinned=pinned))

    def cancel(self, job: str | None) -> tuple[str, ...]:
        """Cancel one job that waits or runs in any process, or all of them, those that others sent to the engine too;
        gives the ids of ours. Raises JobNotFound."""
        jobs = tuple(
            hold.job for hold in self.holds.all() if hold.mode == "generation" and job in (None, hold.job)
        )
        if job is not None and not jobs:
            raise JobNotFound(f"No job {job!r} waits or runs.", id=job)
        try:
            for name in jobs:
                self.board.cancel(name)
        except OSError as fault:
            raise StoreFull(f"The state directory cannot be written: {fault.strerror}.") from fault
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
        holds = self.holds.all()
        ours = len(decide.of(holds, "lease", "generation"))
        jobs, waiting = max(at_work, ours), len(decide.of(holds, "ticket", "generation"))
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
        state = self.books.state()
        stays = state.mode == "inference" or state.pinned or self.policy.restore == "never"
        if not self.is_wired or not self.reconciler.reigns or stays:
            return
        with contextlib.suppress(EaselError):
            self.switch("inference")
        while (state := self.books.state()).under_way or state.wanted:
            time.sleep(_STEP_S)

    # --- for showing -------------------------------------------------------------------------------

    def view(self) -> View:
        """What is true now, for a status page. Cheap."""
        state, pace = self.books.state(), self.books.pace()
        return View(state, self.holds.all(), pace, decide.idle_restore_at(state, pace, self.policy))

    def _forget_the_dead(self) -> None:
        self.holds.sweep()
        self.board.sweep(hold.job for hold in self.holds.all())
