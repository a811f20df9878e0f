"""Test doubles in this process: two tenants that can be told to misbehave, a clock that advances when the code sleeps,
and requests that hold a lease until the test ends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from arbiter import Arbiter, Mode, Policy, Switch
from arbiter.leases import Claim, ClaimFolder, OwnClaim
from arbiter.monitor import Monitor
from arbiter.policy import NextSwitch
from arbiter.reconciler import Reconciler
from arbiter.state_store import StateStore
from arbiter.switchover import Switchover
from errors import (
    EaselError,
    EngineStartFailed,
    EngineUnreachable,
    JobInterrupted,
    StackRefused,
    StackUnreachable,
)
from gpu_tenant import Failure, Resident
from tests.waiting import wait_until

AnyStateStore = TypeVar("AnyStateStore", bound=StateStore)
WAIT_S = 30.0
GB = 10**9


def quick_policy(**changes: Any) -> Policy:
    """A policy for tests that run in real time: short intervals, no minimum stay."""
    values: dict[str, Any] = {
        "min_stay_s": 0.0,
        "drain_timeout_s": 20.0,
        "release_timeout_s": 20.0,
        "verify_timeout_s": 20.0,
        "poll_interval_s": 0.002,
        "release_interval_s": 0.05,
        "reconcile_interval_s": 0.005,
        "check_interval_s": 0.02,
    }
    return Policy(**values | changes)


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


class FakeStacks:
    """An LLM server. `loaded`: model -> when its memory is free, None while it stays loaded."""

    def __init__(self, clock: Callable[[], float] = time.time, *loaded: str) -> None:
        self._clock = clock
        self.loaded: dict[str, float | None] = dict.fromkeys(loaded or ("chat", "embed"))
        self.unload_s = 0.0
        """From the response until the memory is free"""
        self.ignored_unloads = 0
        """So many unload calls succeed without an effect"""
        self.reloads_at: float | None = None
        """When a late request loads `chat` again"""
        self.hides_behind_error = False
        """Another server hangs: `resident` fails, `known_residents` does not"""
        self.late_request: tuple[str, float] | None = None
        """A model, and when a request of another client loads it"""
        self.failing_lists = 0
        """So many list calls fail"""
        self.refuses_unload = False
        self.load_errors: dict[str, str] = {}
        """Model -> why it cannot be loaded"""
        self.fails_restore = False
        self.busy_until = 0.0
        """When the last request of another client ends"""
        self.on_call: Callable[[str], None] = lambda op: None
        """Called at the start of each call, with its name"""

    def _advance(self) -> None:
        now = self._clock()
        self.loaded = {name: gone for name, gone in self.loaded.items() if gone is None or gone > now}
        if self.reloads_at is not None and now >= self.reloads_at:
            self.reloads_at = None
            self.loaded["chat"] = None
        if self.late_request is not None and now >= self.late_request[1]:
            self.loaded[self.late_request[0]] = None
            self.late_request = None

    def resident(self) -> tuple[Resident, ...]:
        self.on_call("resident")
        if self.hides_behind_error:
            raise StackUnreachable("another server does not respond")
        if self.failing_lists > 0:
            self.failing_lists -= 1
            raise StackUnreachable("the fake does not respond")
        self._advance()
        return self._listed()

    def _listed(self) -> tuple[Resident, ...]:
        return tuple(Resident("fake", name, {"of": name}) for name in sorted(self.loaded))

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        if self.hides_behind_error:
            self._advance()
            return self._listed()
        try:
            return self.resident()
        except EaselError:
            return ()

    def busy(self) -> int | None:
        self.on_call("busy")
        return 1 if self._clock() < self.busy_until else 0

    def release(self, residents: Sequence[Resident]) -> None:
        self.on_call("release")
        if self.refuses_unload:
            raise StackRefused("the fake refuses to unload")
        if self.ignored_unloads > 0:
            self.ignored_unloads -= 1
            return
        for item in residents:
            if self.loaded.get(item.id, 0.0) is None:
                self.loaded[item.id] = self._clock() + self.unload_s
        self._advance()

    def restore(
        self, residents: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        self.on_call("restore")
        if self.fails_restore:
            raise StackUnreachable("the fake does not respond")
        for item in residents:
            assert item.saved == {"of": item.id}, "`saved` is passed back unchanged"
            if is_cancelled():
                break
            if item.id not in self.load_errors:
                self.loaded[item.id] = None
        return tuple(
            Failure(item.owner, item.id, self.load_errors[item.id])
            for item in residents
            if item.id in self.load_errors
        )

    def cancel_jobs(self, jobs: Sequence[str] | None) -> bool:
        """An LLM server has no jobs of Easel."""
        return True


class FakeEngine:
    """ComfyUI. `holds_memory`: whether it has models in memory."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.holds_memory = False
        self.is_up = True
        self.failing_starts = 0
        self.lost_cancels = 0
        self.starts = 0
        self.keeps_memory = False
        self.is_hung = False
        self.busy_until = 0.0
        """When the last job of another client ends"""
        self.cancelled: list[str | None] = []
        """None stands for all jobs"""
        self.on_call: Callable[[str], None] = lambda op: None

    def is_down(self) -> bool:
        return not self.is_up

    def _answer(self, op: str) -> None:
        self.on_call(op)
        if self.is_hung:
            raise EngineUnreachable("the fake does not respond")

    def resident(self) -> tuple[Resident, ...]:
        self._answer("resident")
        return (Resident("engine", "models"),) if self.holds_memory else ()

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        return self.resident()

    def busy(self) -> int | None:
        self._answer("busy")
        return 1 if self._clock() < self.busy_until else 0

    def release(self, residents: Sequence[Resident]) -> None:
        self.on_call("release")
        self.holds_memory = self.holds_memory and self.keeps_memory

    def restore(
        self, residents: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        self.on_call("restore")
        if self.is_up:
            return ()
        if self.failing_starts > 0:
            self.failing_starts -= 1
            raise EngineStartFailed("the fake does not start")
        self.is_up, self.starts = True, self.starts + 1
        return ()

    def cancel_jobs(self, jobs: Sequence[str] | None) -> bool:
        self.cancelled.extend([None] if jobs is None else jobs)
        if self.lost_cancels > 0:
            self.lost_cancels -= 1
            return False
        self.busy_until = 0.0
        return True


class Harness:
    """The arbiter's parts with a fake clock and no threads."""

    def __init__(self, folder: Path, policy: Policy | None = None, clock: Clock | None = None) -> None:
        self.folder, self.clock, self.policy = folder, clock or Clock(), policy or Policy()
        self.stacks, self.engine = FakeStacks(self.clock), FakeEngine(self.clock)
        self.free: Callable[[], int | None] = lambda: None
        self.claims = ClaimFolder(folder / "holds")
        self.use(StateStore(folder))

    def use(self, state_store: AnyStateStore) -> AnyStateStore:
        """Build the parts over this state store."""
        self.state_store: StateStore = state_store
        self.switchover = Switchover(
            self.state_store,
            self.claims,
            {"inference": self.stacks, "generation": self.engine},
            self.policy,
            available_bytes=lambda: self.free(),
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        # The checks run at once; those of a real monitor run in a thread.
        monitor = Monitor(self.stacks, lambda: self.engine.is_down(), run_in_background=lambda check: check())
        self.reconciler = Reconciler(self.switchover, shares_gpu=True, monitor=monitor)
        return state_store

    def run_switch(self, target: Mode, **options: Any) -> Switch:
        """Begin a switch and run it to its end."""
        with self.state_store.mutex():
            self.switchover.begin(NextSwitch(target, **{"reason": "requested"} | options))
        return self.resume()

    def resume(self) -> Switch:
        self.switchover.run()
        return self.switch

    def run_ticks(self, seconds: float, interval_s: float = 0.1) -> None:
        """Let `seconds` pass, with a tick of the reconciler every `interval_s`."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.reconciler.tick()
            self.clock.sleep(interval_s)

    def claim(self, mode: Mode, kind: Any = "lease", job: str = "a-job", need: int = 0) -> OwnClaim:
        """A claim that lasts until the test ends it."""
        with self.state_store.mutex():
            number = max([0, *(claim.number for claim in self.claims.all())]) + 1
            return self.claims.create(Claim(kind, number, mode, kind == "ticket", need, 1, job))

    @property
    def switch(self) -> Switch:
        switch = self.state_store.state().switch
        assert switch is not None
        return switch


class Request(threading.Thread):
    """A request that holds its lease until `finish`, and fails when the lease is void, as a render does."""

    def __init__(self, arbiter: Arbiter, mode: Mode, job: str, **options: Any) -> None:
        super().__init__(daemon=True)
        self._arbiter, self._mode, self.job = arbiter, mode, job
        self._options = {"timeout_s": WAIT_S, **options}
        self._granted, self._finish = threading.Event(), threading.Event()
        self.error: EaselError | None = None
        self.is_cancelled = False
        self.start()

    def run(self) -> None:
        try:
            with self._arbiter.lease(
                self._mode, job=self.job, cancelled=lambda: self.is_cancelled, **self._options
            ) as lease:
                self._granted.set()
                while not self._finish.wait(0.002):
                    if lease.is_void():
                        raise JobInterrupted("the engine stopped")
        except EaselError as error:
            self.error = error

    @property
    def is_granted(self) -> bool:
        return self._granted.is_set()

    def wait_granted(self) -> Request:
        """Returns this request once it has its lease."""
        wait_until(lambda: self.is_granted or self.error)
        assert self.is_granted, self.error
        return self

    def wait_queued(self) -> Request:
        """Returns this request once it has a ticket."""
        wait_until(lambda: any(claim.job == self.job for claim in self._arbiter.claims.all()))
        assert not self.is_granted
        return self

    def wait_ended(self) -> EaselError | None:
        """Returns the error of this request, or None, once it has ended."""
        self.join(WAIT_S)
        assert not self.is_alive(), "the request did not end in time"
        return self.error

    def finish(self) -> EaselError | None:
        """Ends the lease; returns the error of this request, or None."""
        self._finish.set()
        return self.wait_ended()
