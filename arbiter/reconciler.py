"""The one that acts: a thread in each process, of which one is elected, drives the GPU towards what is wanted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from filelock import FileLock, Timeout

from arbiter import policy as decide
from arbiter.monitor import Monitor, Observation
from arbiter.switchover import Switchover
from arbiter.values import Mode, State
from errors import EaselError

log = logging.getLogger("easel.gpu")

_ELECTION_S = 0.1
_ERROR_PAUSE_S = 1.0
_RECLAIM_S = 0.2
_START_AGAIN_S = 30.0


class Reconciler:
    """Start it in a process that serves, never in one that forks later. `forget` removes what the dead left behind."""

    def __init__(
        self,
        switchover: Switchover,
        *,
        is_wired: bool,
        monitor: Monitor,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._switchover, self._is_wired = switchover, is_wired
        self._state_store, self._claims = switchover.state_store, switchover.claims
        self._policy, self._clock = switchover.policy, switchover.clock
        self._monitor, self._forget = monitor, forget
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._house_at = self._reclaim_at = 0.0
        self._down = 0
        self.is_leader = False
        """Whether this process's is the elected one"""
        self._start_again_at = 0.0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._live, name="gpu-reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends once the switch under way, if there is one, is over; one that nobody waits for is called off."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def nudge(self) -> None:
        """Something changed in this process: look at once."""
        self._wake.set()

    def _live(self) -> None:
        self._state_store.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._state_store.folder / "reconciler.lock", is_singleton=False, thread_local=False)
        while not self._stopping.is_set():
            try:
                with lock.acquire(blocking=False):
                    self.is_leader = True
                    self._run_as_leader()
                self.is_leader = False
            except Timeout:
                self._stopping.wait(_ELECTION_S)
            except OSError:
                log.exception("no reconciler can be elected")
                self._stopping.wait(_ERROR_PAUSE_S)

    def _run_as_leader(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except Exception:
                # Whatever it was: who reigns must not die of it, or the GPU would stay where it is for ever.
                log.exception("the reconciler stumbled")
                self._stopping.wait(_ERROR_PAUSE_S)
            self._wake.wait(self._policy.tick_s if self._is_wired else _RECLAIM_S)
            self._wake.clear()

    def tick(self) -> None:
        """One look, and whatever it calls for."""
        now = self._clock()
        if now >= self._reclaim_at or now < self._reclaim_at - _ERROR_PAUSE_S:
            self._reclaim_at = now + _RECLAIM_S
            self._switchover.reclaim_dead_leases()
        if self._is_wired:
            self._drive()
        if now >= self._house_at or now < self._house_at - 10 * _ERROR_PAUSE_S:
            self._house_at = now + self._policy.housekeeping_s
            self._keep_house()

    def _drive(self) -> None:
        if self._state_store.state().under_way is None and not self._began_next():
            return
        self._switchover.run()

    def _began_next(self) -> bool:
        """Begin what is due, if anything; decided again under the mutex, for a wish may have come or gone."""
        plan = self._plan()
        if plan is None or (plan.reason == "idle" and self._is_rendering()):
            return False
        with self._state_store.mutex():
            plan = self._plan()
            if plan is None:
                return False
            self._switchover.begin(plan)
            return True

    def _plan(self) -> decide.NextSwitch | None:
        state, pace = self._state_store.state(), self._state_store.pace()
        return decide.next_switch(state, self._claims.all(), pace, self._policy, self._clock())

    def _is_rendering(self) -> bool:
        """Somebody may use ComfyUI's own page: that is no idle time."""
        if self._switchover.tenants["generation"].busy():
            self._state_store.note_use(self._clock())
            return True
        return False

    # --- once a second -----------------------------------------------------------------------------

    def _keep_house(self) -> None:
        self._forget()
        state = self._state_store.state()
        sight = self._monitor.seen(state.switch.number if state.switch else 0)
        if sight is None:
            return
        if not self._is_wired:
            self._keep_engine_up(sight)
        elif decide.is_open(state, "generation"):
            self._put_right(state, sight)

    def _keep_engine_up(self, sight: Observation) -> None:
        """With nobody to share the GPU with, the engine is simply to be there."""
        if not sight.is_engine_down or self._clock() < self._start_again_at:
            return
        try:
            self._switchover.tenants["generation"].restore(())
        except EaselError as error:
            log.error("%s", error.message)
            self._start_again_at = self._clock() + _START_AGAIN_S

    def _put_right(self, state: State, sight: Observation) -> None:
        """Image mode in which an LLM is loaded, or the engine is gone, is none."""
        names = ", ".join(f"{item.owner}/{item.id}" for item in sight.residents)
        if names and self._policy.sharing == "exclusive":
            if self._is_untouched(state):
                self._begin_now("inference", f"loaded when Easel started: {names}")
            else:
                self._begin_now("generation", f"loaded behind our back: {names}")
        self._down = self._down + 1 if sight.is_engine_down else 0
        if self._down >= 2:
            self._down = 0
            self._begin_now("generation", "the engine is down")

    def _is_untouched(self, state: State) -> bool:
        """Whether nobody has used image mode since the server started: what is loaded then (after a reboot, for instance)
        is what the owner wants, not an intruder."""
        started = self._state_store.started_at()
        used = max(state.since, self._state_store.pace().last)
        return started is not None and used < started and not state.pinned and not self._claims.all()

    def _begin_now(self, target: Mode, reason: str) -> None:
        """Begin a switch that nobody asked for, unless another came first."""
        with self._state_store.mutex():
            if not decide.is_open(self._state_store.state(), "generation"):
                return
            log.warning("image mode is put right: %s", reason)
            self._switchover.begin(decide.NextSwitch(target, reason))
        self._switchover.run()
