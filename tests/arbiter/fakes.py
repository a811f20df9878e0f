"""Two tenants in this process that work and can misbehave, a clock that moves when somebody waits, and requests that
hold the GPU until they are told to let go."""

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
from errors import EaselError, EngineStartFailed, JobInterrupted, StackRefused, StackUnreachable
from gpu_tenant import Failure, Resident

B = TypeVar("B", bound=StateStore)
WAIT_S = 30.0
GB = 10**9


def until(condition: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    """What `condition` gives once it is true."""
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(0.002)
    return found


def quick(**changes: Any) -> Policy:
    """A policy for tests that run in real time: it looks often and gives up soon."""
    values: dict[str, Any] = {
        "min_stay_s": 0.0,
        "drain_s": 20.0,
        "release_s": 20.0,
        "verify_s": 20.0,
        "look_s": 0.002,
        "again_s": 0.05,
        "tick_s": 0.005,
        "housekeeping_s": 0.02,
    }
    return Policy(**values | changes)


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


class FakeStacks:
    """An LLM server. `loaded`: model -> when it will be gone, None for staying."""

    def __init__(self, clock: Callable[[], float] = time.time, *loaded: str) -> None:
        self._clock = clock
        self.loaded: dict[str, float | None] = dict.fromkeys(loaded or ("chat", "embed"))
        self.unload_s = 0.0
        """From the answer until the memory is free"""
        self.lies = 0
        """So many unloads answer well and do nothing"""
        self.reloads_at: float | None = None
        """When a late request loads `chat` again"""
        self.deaf = 0
        """So many lists are not answered"""
        self.refuses_unload = False
        self.load_fails: dict[str, str] = {}
        """Model -> why it cannot be loaded"""
        self.loading_raises = False
        self.busy_until = 0.0
        """Somebody's requests run until then"""
        self.before: Callable[[str], None] = lambda op: None
        """Called before anything that matters is done"""

    def _advance(self) -> None:
        now = self._clock()
        self.loaded = {name: gone for name, gone in self.loaded.items() if gone is None or gone > now}
        if self.reloads_at is not None and now >= self.reloads_at:
            self.reloads_at = None
            self.loaded["chat"] = None

    def resident(self) -> tuple[Resident, ...]:
        self.before("resident")
        if self.deaf > 0:
            self.deaf -= 1
            raise StackUnreachable("the fake is deaf")
        self._advance()
        return tuple(Resident("fake", name, {"of": name}) for name in sorted(self.loaded))

    def busy(self) -> int | None:
        self.before("busy")
        return 1 if self._clock() < self.busy_until else 0

    def release(self, residents: Sequence[Resident]) -> None:
        self.before("release")
        if self.refuses_unload:
            raise StackRefused("the fake refuses to unload")
        if self.lies > 0:
            self.lies -= 1
            return
        for item in residents:
            if self.loaded.get(item.id, 0.0) is None:
                self.loaded[item.id] = self._clock() + self.unload_s
        self._advance()

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        self.before("restore")
        if self.loading_raises:
            raise StackUnreachable("the fake is gone")
        for item in residents:
            assert item.saved == {"of": item.id}, "what was saved comes back as it was"
            if item.id not in self.load_fails:
                self.loaded[item.id] = None
        return tuple(
            Failure(item.owner, item.id, self.load_fails[item.id])
            for item in residents
            if item.id in self.load_fails
        )

    def drop(self, jobs: Sequence[str] | None) -> None:
        """An LLM server knows no jobs of ours."""


class FakeEngine:
    """ComfyUI. `claims`: whether it has models in memory."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.claims = False
        self.is_up = True
        self.start_fails = 0
        self.starts = 0
        self.keeps_memory = False
        self.renders_until = 0.0
        """Somebody else draws until then"""
        self.dropped: list[str | None] = []
        """None stands for everything"""
        self.before: Callable[[str], None] = lambda op: None

    def is_down(self) -> bool:
        return not self.is_up

    def resident(self) -> tuple[Resident, ...]:
        self.before("resident")
        return (Resident("engine", "models"),) if self.claims else ()

    def busy(self) -> int | None:
        self.before("busy")
        return 1 if self._clock() < self.renders_until else 0

    def release(self, residents: Sequence[Resident]) -> None:
        self.before("release")
        self.claims = self.claims and self.keeps_memory

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        self.before("restore")
        if self.is_up:
            return ()
        if self.start_fails > 0:
            self.start_fails -= 1
            raise EngineStartFailed("the fake does not start")
        self.is_up, self.starts = True, self.starts + 1
        return ()

    def drop(self, jobs: Sequence[str] | None) -> None:
        self.dropped.extend([None] if jobs is None else jobs)
        self.renders_until = 0.0


class Stage:
    """The arbiter's parts over a clock that nobody waits for: `play` carries a switch to its end, `tick` is one look."""

    def __init__(self, folder: Path, policy: Policy | None = None, clock: Clock | None = None) -> None:
        self.folder, self.clock, self.policy = folder, clock or Clock(), policy or Policy()
        self.stacks, self.engine = FakeStacks(self.clock), FakeEngine(self.clock)
        self.free: Callable[[], int | None] = lambda: None
        self.claims = ClaimFolder(folder / "holds")
        self.use(StateStore(folder))

    def use(self, state_store: B) -> B:
        """Build the parts over these books."""
        self.state_store: StateStore = state_store
        self.switchover = Switchover(
            self.state_store,
            self.claims,
            {"inference": self.stacks, "generation": self.engine},
            self.policy,
            free_memory=lambda: self.free(),
            clock=self.clock,
            pause=self.clock.wait,
        )
        # At once, where the real one looks from a thread of its own.
        monitor = Monitor(self.stacks, lambda: self.engine.is_down(), aside=lambda look: look())
        self.reconciler = Reconciler(self.switchover, is_wired=True, monitor=monitor)
        return state_store

    def play(self, target: Mode, **given: Any) -> Switch:
        """Begin a switch and carry it to its end."""
        with self.state_store.mutex():
            self.switchover.begin(NextSwitch(target, "asked", **given))
        return self.resume()

    def resume(self) -> Switch:
        self.switchover.run()
        return self.switch

    def ticks(self, seconds: float, each: float = 0.1) -> None:
        """So much time passes, with a look every now and then."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.reconciler.tick()
            self.clock.wait(each)

    def claim(self, mode: Mode, kind: Any = "lease", job: str = "a-job", need: int = 0) -> OwnClaim:
        """A hold that lasts until it is ended."""
        with self.state_store.mutex():
            number = max([0, *(claim.number for claim in self.claims.all())]) + 1
            return self.claims.take(Claim(kind, number, mode, kind == "ticket", need, 1, job))

    @property
    def switch(self) -> Switch:
        switch = self.state_store.state().switch
        assert switch is not None
        return switch


class Request(threading.Thread):
    """A request that holds the GPU until it is told to let go, and stops when its lease is void, as a render does."""

    def __init__(self, arbiter: Arbiter, mode: Mode, job: str, **given: Any) -> None:
        super().__init__(daemon=True)
        self._arbiter, self._mode, self.job = arbiter, mode, job
        self._given = {"timeout_s": WAIT_S, **given}
        self._has, self._over = threading.Event(), threading.Event()
        self.error: EaselError | None = None
        self.hung_up = False
        self.start()

    def run(self) -> None:
        try:
            with self._arbiter.lease(
                self._mode, job=self.job, cancelled=lambda: self.hung_up, **self._given
            ) as lease:
                self._has.set()
                while not self._over.wait(0.002):
                    if lease.is_void():
                        raise JobInterrupted("the engine stopped")
        except EaselError as error:
            self.error = error

    @property
    def has_it(self) -> bool:
        return self._has.is_set()

    def gets_it(self) -> Request:
        """This request, once it has the GPU."""
        until(lambda: self.has_it or self.error)
        assert self.has_it, self.error
        return self

    def waits(self) -> Request:
        """This request, once it stands in the queue."""
        until(lambda: any(claim.job == self.job for claim in self._arbiter.claims.all()))
        assert not self.has_it
        return self

    def ends(self) -> EaselError | None:
        """How it came to its end, once it has."""
        self.join(WAIT_S)
        assert not self.is_alive(), "the request does not come to an end"
        return self.error

    def lets_go(self) -> EaselError | None:
        self._over.set()
        return self.ends()
