"""Looks around beside the reconciler, for servers may take seconds to answer and a new wish shall not wait for them."""

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
    """What was seen while switch `number` was the last: LLMs in memory (empty also if nobody knows), and whether the
    engine's process is gone and could be started again."""

    number: int
    residents: tuple[Resident, ...]
    is_engine_down: bool


class Monitor:
    """One look at a time. `aside` runs it, in a thread unless told otherwise."""

    def __init__(
        self,
        llms: Tenant | None,
        engine_down: Callable[[], bool],
        *,
        aside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._llms, self._engine_down = llms, engine_down
        self._aside = aside or _in_thread
        self._looking = threading.Event()
        self._sight: Observation | None = None

    def seen(self, number: int) -> Observation | None:
        """What the last look saw, if it is new and no switch has come since; the next look is begun."""
        if self._looking.is_set():
            return None
        if self._sight is None:
            self._begin(number)
        if self._looking.is_set():
            return None
        sight, self._sight = self._sight, None
        return sight if sight is not None and sight.number == number else None

    def _begin(self, number: int) -> None:
        self._looking.set()
        self._aside(lambda: self._look(number))

    def _look(self, number: int) -> None:
        try:
            self._sight = Observation(number, self._residents(), self._engine_down())
        except Exception:
            log.exception("a look around failed")
        finally:
            self._looking.clear()

    def _residents(self) -> tuple[Resident, ...]:
        try:
            return self._llms.resident() if self._llms else ()
        except EaselError as error:
            log.debug("nobody knows whether an LLM was loaded: %s", error.message)
            return ()


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="gpu-lookout", daemon=True).start()
