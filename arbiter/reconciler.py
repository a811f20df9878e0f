"""The one that acts: a thread in each process, of which one is elected, drives the GPU towards what is wanted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from filelock import FileLock, Timeout

from arbiter import policy as decide
from arbiter.switchover import Switchover
from arbiter.values import State
from errors import EaselError

log = logging.getLogger("easel.gpu")

_ELECTION_S = 0.1
_TROUBLE_S = 1.0
_BURY_S = 0.2
_START_AGAIN_S = 30.0


class Reconciler:
    """Start it in a process that serves, never in one that forks later. `engine_down` says that the engine's process is
    gone and could be started again; `forget` removes what dead jobs left on the board."""

    def __init__(
        self,
        switchover: Switchover,
        *,
        is_wired: bool,
        engine_down: Callable[[], bool] = lambda: False,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._switchover, self._is_wired = switchover, is_wired
        self._books, self._holds = switchover.books, switchover.holds
        self._policy, self._clock = switchover.policy, switchover.clock
        self._engine_down, self._forget = engine_down, forget
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._house_at = self._bury_at = 0.0
        self._down = 0
        self._start_again_at = 0.0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._live, name="gpu-reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the phase that it is in."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def nudge(self) -> None:
        """Something changed in this process: look at once."""
        self._wake.set()

    def _live(self) -> None:
        self._books.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._books.folder / "reconciler.lock", is_singleton=False, thread_local=False)
        while not self._stopping.is_set():
            try:
                with lock.acquire(blocking=False):
                    self._reign()
            except Timeout:
                self._stopping.wait(_ELECTION_S)
            except OSError:
                log.exception("no reconciler can be elected")
                self._stopping.wait(_TROUBLE_S)

    def _reign(self) -> None:
        while not self._stopping.is_set():
            try:
                self._take_stock()
                self.tick()
            except Exception:
                # Whatever it was: who reigns must not die of it, or the GPU would stay where it is for ever.
                log.exception("the reconciler stumbled")
                self._stopping.wait(_TROUBLE_S)
            self._wake.wait(self._policy.tick_s if self._is_wired else _BURY_S)
            self._wake.clear()

    def _take_stock(self) -> None:
        """After a start of the whole server: LLMs may have been loaded while nobody looked, by a reboot for instance."""
        if not self._books.was_started() or not self._is_wired:
            return
        try:
            residents = self._switchover.tenants["inference"].resident()
        except EaselError:
            return
        with self._books.mutex():
            state = self._books.state()
            stays = state.mode == "inference" or state.under_way is not None or state.pinned
            if residents and not stays and not self._holds.all():
                self._switchover.begin(
                    decide.Next("inference", "the LLM servers were loaded when Easel started")
                )

    def tick(self) -> None:
        """One look, and whatever it calls for."""
        now = self._clock()
        if now >= self._bury_at or now < self._bury_at - _TROUBLE_S:
            self._bury_at = now + _BURY_S
            self._switchover.bury_dead()
        if self._is_wired:
            self._drive()
        if now >= self._house_at or now < self._house_at - 10 * _TROUBLE_S:
            self._house_at = now + self._policy.housekeeping_s
            self._keep_house()

    def _drive(self) -> None:
        if self._books.state().under_way is None and not self._began_next():
            return
        self._switchover.run()

    def _began_next(self) -> bool:
        """Begin what is due, if anything; decided again under the mutex, for a wish may have come or gone."""
        plan = self._plan()
        if plan is None or (plan.reason == "idle" and self._is_rendering()):
            return False
        with self._books.mutex():
            plan = self._plan()
            if plan is None:
                return False
            self._switchover.begin(plan)
            return True

    def _plan(self) -> decide.Next | None:
        state, pace = self._books.state(), self._books.pace()
        return decide.next_switch(state, self._holds.all(), pace, self._policy, self._clock())

    def _is_rendering(self) -> bool:
        """Somebody may use ComfyUI's own page: that is no idle time."""
        if self._switchover.tenants["generation"].busy():
            self._books.note_use(self._clock())
            return True
        return False

    # --- once a second -----------------------------------------------------------------------------

    def _keep_house(self) -> None:
        self._forget()
        if not self._is_wired:
            self._keep_engine_up()
            return
        state = self._books.state()
        if state.mode == "generation" and state.under_way is None and self._policy.sharing == "exclusive":
            self._look_for_intruders(state)
        self._look_after_engine()

    def _look_for_intruders(self, state: State) -> None:
        """An LLM loaded behind our back: the pictures would run out of memory."""
        try:
            residents = self._switchover.tenants["inference"].resident()
        except EaselError as fault:
            log.debug("nobody knows whether an LLM was loaded: %s", fault.message)
            return
        if residents:
            names = tuple(f"{item.owner}/{item.id}" for item in residents)
            self._repair(f"loaded behind our back: {', '.join(names)}")

    def _keep_engine_up(self) -> None:
        """With nobody to share the GPU with, the engine is simply to be there."""
        if self._clock() < self._start_again_at or not self._engine_down():
            return
        try:
            self._switchover.tenants["generation"].restore(())
        except EaselError as fault:
            log.error("%s", fault.message)
            self._start_again_at = self._clock() + _START_AGAIN_S

    def _look_after_engine(self) -> None:
        state = self._books.state()
        if state.mode != "generation" or state.under_way is not None:
            self._down = 0
            return
        self._down = self._down + 1 if self._engine_down() else 0
        if self._down >= 2:
            self._down = 0
            self._repair("the engine is down")

    def _repair(self, reason: str) -> None:
        """Go through the phases to the mode that we are in already."""
        with self._books.mutex():
            state = self._books.state()
            if not decide.is_open(state, "generation"):
                return
            log.warning("image mode is put right: %s", reason)
            self._switchover.begin(decide.Next("generation", reason))
        self._switchover.run()
