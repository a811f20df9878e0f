"""Checks the tenants in a thread beside the reconciler: a server may take seconds to respond, and a new request must
not wait for that."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deadline import remaining_s
from gpu_tenant import Resident, Tenant

log = logging.getLogger("easel.gpu")


@dataclass(frozen=True)
class Observation:
    """The result of one check, made while switch `switch_number` was the last one: the LLMs in memory (those
    that are known), and whether the engine's process is gone and can be started again."""

    switch_number: int
    residents: tuple[Resident, ...]
    is_engine_down: bool


_CHECK_TIMEOUT_S = 2.0
"""A server that hangs must not hide for long what the others have loaded"""


class Monitor:
    """Runs one check at a time. `run_in_background` starts it, by default in a thread."""

    def __init__(
        self,
        llms: Tenant | None,
        engine_down: Callable[[], bool],
        *,
        run_in_background: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._llms, self._engine_down = llms, engine_down
        self._run_in_background = run_in_background or _run_in_thread
        self._is_checking = threading.Event()
        self._observation: Observation | None = None

    def poll(self, switch_number: int, *, may_start: bool) -> Observation | None:
        """The result of a check, once, as soon as it has ended, and only if no switch started since. Starts a check if
        none is running and `may_start` is set."""
        if self._is_checking.is_set():
            return None
        if self._observation is None and may_start:
            self._is_checking.set()
            try:
                self._run_in_background(lambda: self._check(switch_number))
            except BaseException:  # no more threads: nobody would end it
                self._is_checking.clear()
                raise
        if self._is_checking.is_set():
            return None
        observation, self._observation = self._observation, None
        return observation if observation is not None and observation.switch_number == switch_number else None

    def _check(self, switch_number: int) -> None:
        try:
            residents = self._llms.known_residents(_CHECK_TIMEOUT_S) if self._llms else ()
            self._observation = Observation(switch_number, residents, self._engine_down())
        except Exception:
            log.exception("the check of the LLM stacks and the engine failed")
        finally:
            self._is_checking.clear()


_QUICK_CHECK_TIMEOUT_S = 2.0
_HUNG_CHECK_TIMEOUT_S = 0.2
"""While a server is known to hang"""
_HUNG_MEMORY_S = 30.0
"""How long a server that did not answer in time is known to hang"""


class QuickCheck:
    """Reads which LLMs are loaded, for requests that must not wait for a server that does not respond. Requests that
    come while a check runs share it."""

    def __init__(self, llms: Tenant) -> None:
        self._llms = llms
        self._lock = threading.Lock()
        self._running: _Check | None = None
        self._hung_until = 0.0

    def run(self) -> tuple[Resident, ...]:
        """The LLMs in memory, those that are known within 2 s; while a server is known to hang, within 0.2 s."""
        with self._lock:
            check = self._running
            if check is None:
                check = _Check()
                threading.Thread(target=self._read, args=(check,), name="gpu-check", daemon=True).start()
                self._running = check  # only now: without the thread nobody would end it
        check.done.wait(min(_QUICK_CHECK_TIMEOUT_S + _HUNG_CHECK_TIMEOUT_S, remaining_s()))
        return check.residents

    def _read(self, check: _Check) -> None:
        try:
            started_at = time.monotonic()
            timeout_s = _HUNG_CHECK_TIMEOUT_S if started_at < self._hung_until else _QUICK_CHECK_TIMEOUT_S
            check.residents = self._llms.known_residents(timeout_s)
            if time.monotonic() - started_at >= _QUICK_CHECK_TIMEOUT_S:
                self._hung_until = time.monotonic() + _HUNG_MEMORY_S
        finally:
            with self._lock:
                self._running = None
            check.done.set()


@dataclass
class _Check:
    done: threading.Event = field(default_factory=threading.Event)
    residents: tuple[Resident, ...] = ()


def _run_in_thread(check: Callable[[], None]) -> None:
    threading.Thread(target=check, name="gpu-monitor", daemon=True).start()
