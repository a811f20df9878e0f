"""Checks the tenants in a thread beside the reconciler: a server may take seconds to respond, and a new request must
not wait for that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from errors import EaselError
from gpu_tenant import Resident, Tenant

log = logging.getLogger("easel.gpu")


@dataclass(frozen=True)
class Observation:
    """The result of one check, made while switch `switch_number` was the last one: the LLMs in memory (empty also if
    that is unknown), and whether the engine's process is gone and can be started again."""

    switch_number: int
    residents: tuple[Resident, ...]
    is_engine_down: bool


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

    def poll(self, switch_number: int) -> Observation | None:
        """The result of the last check, once, and only if no switch started since. Starts a check if there is no result
        and none is running."""
        if self._is_checking.is_set():
            return None
        if self._observation is None:
            self._is_checking.set()
            self._run_in_background(lambda: self._check(switch_number))
        if self._is_checking.is_set():
            return None
        observation, self._observation = self._observation, None
        return observation if observation is not None and observation.switch_number == switch_number else None

    def _check(self, switch_number: int) -> None:
        try:
            self._observation = Observation(switch_number, self._residents(), self._engine_down())
        except Exception:
            log.exception("the check of the LLM stacks and the engine failed")
        finally:
            self._is_checking.clear()

    def _residents(self) -> tuple[Resident, ...]:
        try:
            return self._llms.resident() if self._llms else ()
        except EaselError as error:
            log.debug("could not read which LLMs are loaded: %s", error.message)
            return ()


def _run_in_thread(check: Callable[[], None]) -> None:
    threading.Thread(target=check, name="gpu-monitor", daemon=True).start()
