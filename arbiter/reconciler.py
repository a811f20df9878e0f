"""The reconciler: a thread in each process. One of them is elected leader and runs the switchovers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from filelock import FileLock, Timeout

from arbiter.monitor import Monitor, Observation
from arbiter.policy import NextSwitch, is_open, next_switch
from arbiter.switchover import Switchover
from arbiter.values import Mode, State
from errors import EaselError

log = logging.getLogger("easel.gpu")

_ELECTION_INTERVAL_S = 0.1
_ERROR_DELAY_S = 1.0
_RECLAIM_INTERVAL_S = 0.2
_ENGINE_START_DELAY_S = 30.0
"""After a failed start of the engine"""
_MIN_DOWN_CHECKS = 2
"""So many checks in a row must find the engine down before it is started again"""


class Reconciler:
    """Start it in a process that serves, never in one that forks later. `clean_up` removes the files of dead processes.
    Without `shares_gpu` there are no switches: it only reclaims dead leases and keeps the engine running."""

    def __init__(
        self,
        switchover: Switchover,
        *,
        shares_gpu: bool,
        monitor: Monitor,
        clean_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._switchover, self._shares_gpu = switchover, shares_gpu
        self._state_store, self._claims = switchover.state_store, switchover.claims
        self._policy, self._clock = switchover.policy, switchover.clock
        self._monitor, self._clean_up = monitor, clean_up
        self._wake_event, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._next_check_at = self._next_reclaim_at = self._next_engine_start_at = 0.0
        self._down_checks = 0
        self.is_leader = False
        """Whether this process's reconciler is the elected one"""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="gpu-reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Waits until the active switch has ended; one that no request waits for is cancelled."""
        self._stopping.set()
        self._wake_event.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Run the next tick now: this process has written a ticket or a switch request."""
        self._wake_event.set()

    def _run(self) -> None:
        self._state_store.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._state_store.folder / "reconciler.lock", is_singleton=False, thread_local=False)
        while not self._stopping.is_set():
            try:
                with lock.acquire(blocking=False):
                    self.is_leader = True
                    self._run_as_leader()
                self.is_leader = False
            except Timeout:
                self._stopping.wait(_ELECTION_INTERVAL_S)
            except OSError:
                log.exception("could not lock reconciler.lock, will retry")
                self._stopping.wait(_ERROR_DELAY_S)

    def _run_as_leader(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except Exception:
                # The leader must survive every error: without it the GPU would never be handed over again.
                log.exception("reconcile loop failed, will retry")
                self._stopping.wait(_ERROR_DELAY_S)
            self._wake_event.wait(
                self._policy.reconcile_interval_s if self._shares_gpu else _RECLAIM_INTERVAL_S
            )
            self._wake_event.clear()

    def tick(self) -> None:
        """One pass: reclaim dead leases, run the switch that is due, check the tenants."""
        now = self._clock()
        if now >= self._next_reclaim_at or now < self._next_reclaim_at - _ERROR_DELAY_S:
            self._next_reclaim_at = now + _RECLAIM_INTERVAL_S
            self._switchover.reclaim_dead_leases()
        if self._shares_gpu and (self._state_store.state().active_switch is not None or self._begin_next()):
            self._switchover.run()
        if now >= self._next_check_at or now < self._next_check_at - 10 * _ERROR_DELAY_S:
            self._next_check_at = now + self._policy.check_interval_s
            self._clean_up()
            self._check_tenants()

    def _begin_next(self) -> bool:
        """Begin the switch that is due, if any. Decided again under the mutex: tickets and requests may have
        changed."""
        plan = self._next_switch()
        if plan is None or (plan.reason == "idle" and self._is_engine_busy()):
            return False
        with self._state_store.mutex():
            plan = self._next_switch()
            if plan is None:
                return False
            self._switchover.begin(plan)
            return True

    def _next_switch(self) -> NextSwitch | None:
        state, pace = self._state_store.state(), self._state_store.pace()
        return next_switch(state, self._claims.all(), pace, self._policy, self._clock())

    def _is_engine_busy(self) -> bool:
        """Jobs from ComfyUI's own page count as use of the engine, too."""
        if self._switchover.tenants["generation"].busy():
            self._state_store.record_use(self._clock())
            return True
        return False

    # --- checks of the tenants ---------------------------------------------------------------------

    def _check_tenants(self) -> None:
        state = self._state_store.state()
        observation = self._monitor.poll(state.switch.number if state.switch else 0)
        if observation is None:
            return
        if not self._shares_gpu:
            self._keep_engine_running(observation)
        elif is_open(state, "generation"):
            self._repair_generation_mode(state, observation)

    def _keep_engine_running(self, observation: Observation) -> None:
        """Without LLM stacks the engine is started without a switch."""
        if not observation.is_engine_down or self._clock() < self._next_engine_start_at:
            return
        try:
            self._switchover.tenants["generation"].restore(())
        except EaselError as error:
            log.error("could not start the engine: %s", error.message)
            self._next_engine_start_at = self._clock() + _ENGINE_START_DELAY_S

    def _repair_generation_mode(self, state: State, observation: Observation) -> None:
        """In generation mode no LLM may be loaded and the engine must run; else begin a switch that restores this."""
        names = ", ".join(f"{item.owner}/{item.id}" for item in observation.residents)
        if names and self._policy.sharing == "exclusive":
            if self._is_unused_since_start(state):
                self._begin_repair("inference", f"loaded when Easel started: {names}")
            else:
                self._begin_repair("generation", f"loaded outside Easel: {names}")
        self._down_checks = self._down_checks + 1 if observation.is_engine_down else 0
        if self._down_checks >= _MIN_DOWN_CHECKS:
            self._down_checks = 0
            self._begin_repair("generation", "the engine is down")

    def _is_unused_since_start(self, state: State) -> bool:
        """Whether generation mode was not used since the server started. LLMs that are loaded then (after a reboot, for
        instance) are what the owner wants, so they are not unloaded."""
        started_at = self._state_store.server_started_at()
        used_at = max(state.since, self._state_store.pace().last)
        return started_at is not None and used_at < started_at and not state.pinned and not self._claims.all()

    def _begin_repair(self, target: Mode, reason: str) -> None:
        """Run a switch that was not requested, unless another one is active or requested."""
        with self._state_store.mutex():
            if not is_open(self._state_store.state(), "generation"):
                return
            log.warning("repairing generation mode: %s", reason)
            self._switchover.begin(NextSwitch(target, reason))
        self._switchover.run()
