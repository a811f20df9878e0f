"""The reconciler: a thread in each process. One of them is elected leader and runs the switchovers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from arbiter.fair_queue import NO_TURNS, Turns
from arbiter.monitor import Monitor, Observation
from arbiter.policy import (
    ENGINE_DOWN,
    NO_PICTURES,
    NextSwitch,
    Situation,
    after_llm_load,
    is_open,
    next_switch,
)
from arbiter.switchover import Switchover
from arbiter.values import MODES, Mode
from errors import EaselError
from state_files import ensure_folder

log = logging.getLogger("easel.gpu")

_ELECTION_INTERVAL_S = 0.1
_ERROR_DELAY_S = 1.0
_RECLAIM_INTERVAL_S = 0.2
_CLAIMED_AGE_S = 0.5
"""A request of this age has had a claim"""
_ENGINE_START_DELAY_S = 30.0
"""After a failed start of the engine"""
_MIN_DOWN_CHECKS = 2
"""So many checks in a row must find the engine down before it is started again"""


class Reconciler:
    """Start it in a process that serves, never in one that forks later. Without `engine_uses_gpu` (only sketches are
    drawn) a pin and an explicit request do not keep generation mode. `clean_up` removes the files of dead processes.
    Without `shares_gpu` there are no switches: it only reclaims dead leases and keeps the engine running."""

    def __init__(
        self,
        switchover: Switchover,
        *,
        shares_gpu: bool,
        monitor: Monitor,
        engine_uses_gpu: Callable[[], bool] = lambda: True,
        clean_up: Callable[[], None] = lambda: None,
        turns: Callable[[], Turns] = lambda: NO_TURNS,
    ) -> None:
        self._switchover, self._shares_gpu = switchover, shares_gpu
        self._state_store, self._claims = switchover.state_store, switchover.claims
        self._policy, self._clock = switchover.policy, switchover.clock
        self._monitor, self._engine_uses_gpu, self._clean_up = monitor, engine_uses_gpu, clean_up
        self._turns = turns
        self._wake_event, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._next_check_at = self._next_reclaim_at = self._next_engine_start_at = 0.0
        self._down_checks = 0
        self._asked_at: dict[Mode, float] = dict.fromkeys(MODES, 0.0)
        """When each mode last had a claim, as far as this process saw it"""
        self.is_leader = False
        """Whether this process's reconciler is the elected one"""

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="gpu-reconciler", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self, timeout_s: float | None = None) -> None:
        """Waits until the active switch has ended, or `timeout_s`; one that no request waits for is cancelled."""
        self._stopping.set()
        self._wake_event.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Run the next tick now: this process has written a ticket or a switch request."""
        self._wake_event.set()

    def _run(self) -> None:
        path = self._state_store.folder / "reconciler.lock"
        lock = FileLock(path, is_singleton=False, thread_local=False)
        while not self._stopping.is_set():
            try:
                ensure_folder(path.parent)
                with lock.acquire(blocking=False):
                    self.is_leader = True
                    self._run_as_leader(path)
            except Timeout:
                self._stopping.wait(_ELECTION_INTERVAL_S)
            except OSError as error:
                log.error("could not lock %s, will retry: %s", path.name, error.strerror)
                self._stopping.wait(_ERROR_DELAY_S)
            finally:
                self.is_leader = False

    def _run_as_leader(self, lock_file: Path) -> None:
        """Returns when the lock file is no longer the locked one: somebody has removed or replaced the state directory,
        and another process may already have locked the new file."""
        locked = _inode(lock_file)
        self._switchover.events.write("policy", **asdict(self._policy))
        while not self._stopping.is_set() and locked is not None and _inode(lock_file) == locked:
            try:
                self.tick()
            except Exception as error:
                # The leader must survive every error: without it the GPU would never be handed over again.
                if not isinstance(error, OSError | EaselError):
                    log.exception("reconcile loop failed, will retry")
                else:
                    log.error("reconcile loop failed, will retry: %s", error)
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
        is_due = now >= self._next_check_at or now < self._next_check_at - 10 * _ERROR_DELAY_S
        if is_due:
            self._next_check_at = now + self._policy.check_interval_s
            self._clean_up()
        self._check_tenants(may_start=is_due)

    def _begin_next(self) -> bool:
        """Begin the switch that is due, if any. Decided again under the mutex: tickets and requests may have
        changed."""
        plan = next_switch(self._situation())
        if plan is None or (plan.reason == NO_PICTURES and self._is_in_use(min_age_s=0.0)):
            return False
        with self._state_store.mutex():
            plan = next_switch(self._situation())
            if plan is None:
                return False
            self._switchover.begin(plan)
            return True

    def _situation(self) -> Situation:
        state, claims, now = self._state_store.state(), self._claims.all(), self._clock()
        if state.mode == "generation" and (state.pinned or state.requested) and not self._engine_uses_gpu():
            state = replace(state, pinned=False, requested=False)
        for mode in {claim.mode for claim in claims}:
            self._asked_at[mode] = now
        pace, asked_at = self._state_store.pace(), self._asked_at[state.mode]
        return Situation(state, claims, pace, self._policy, now, asked_at, turns=self._turns())

    def _is_in_use(self, *, min_age_s: float) -> bool:
        """Whether pictures are drawn although there is no claim: a request may be between two of its jobs."""
        return self._switchover.has_requests(min_age_s) or self._is_engine_busy()

    def _is_engine_busy(self) -> bool:
        """Whether the engine has jobs. Those from ComfyUI's own page count as use, too. An engine that does not answer
        counts as not busy; the switch then fails and says why."""
        try:
            jobs = self._switchover.tenants["generation"].busy()
        except EaselError:
            return False
        if jobs:
            self._state_store.record_use(self._clock())
        return bool(jobs)

    # --- checks of the tenants ---------------------------------------------------------------------

    def _check_tenants(self, *, may_start: bool) -> None:
        state = self._state_store.state()
        observation = self._monitor.poll(state.switch.number if state.switch else 0, may_start=may_start)
        if observation is None:
            return
        if not self._shares_gpu:
            self._keep_engine_running(observation)
        elif is_open(state, "generation"):
            self._check_generation_mode(observation)
        else:
            self._down_checks = 0

    def _keep_engine_running(self, observation: Observation) -> None:
        """Without LLM stacks the engine is started without a switch."""
        if not observation.is_engine_down or self._clock() < self._next_engine_start_at:
            return
        try:
            self._switchover.tenants["generation"].restore((), lambda: False)
        except EaselError as error:
            log.error("could not start the engine: %s", error.message)
            self._next_engine_start_at = self._clock() + _ENGINE_START_DELAY_S

    def _check_generation_mode(self, observation: Observation) -> None:
        """In generation mode an LLM that is loaded takes the GPU if nothing is drawn; else it is unloaded. The engine
        must run."""
        if observation.residents and self._policy.sharing == "exclusive":
            # A younger request has no claim yet, and looks for LLMs itself.
            is_in_use = self._is_in_use(min_age_s=_CLAIMED_AGE_S)
            with self._state_store.mutex():
                plan = after_llm_load(self._situation(), observation.residents, is_in_use=is_in_use)
                if plan is not None:
                    self._begin(plan)
        self._down_checks = self._down_checks + 1 if observation.is_engine_down else 0
        if self._down_checks >= _MIN_DOWN_CHECKS:
            self._down_checks = 0
            with self._state_store.mutex():
                if is_open(self._state_store.state(), "generation"):
                    self._begin(NextSwitch("generation", ENGINE_DOWN))
        if self._state_store.state().active_switch is not None:
            self._switchover.run()

    def _begin(self, plan: NextSwitch) -> None:
        log.warning("generation mode: %s", plan.reason)
        self._switchover.begin(plan)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
