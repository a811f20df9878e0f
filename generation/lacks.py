"""What each engine was found to lack for a kind of request, for a few seconds: so that not every request asks an engine in
vain that does not have the files of its model. Only with several engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

from compiler import Plan
from errors import EaselError

KNOWN_S = 5.0
"""A file that was added since shows after that"""
_MAX_ENTRIES = 10_000


class Lacks:
    """Shared by all requests of a process. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._known: dict[Hashable, dict[str, tuple[float, EaselError]]] = {}
        """kind of request -> engine -> until when it counts, and what it lacks"""

    @staticmethod
    def key(plan: Plan) -> Hashable:
        """Equal for plans whose graphs need the same nodes and files."""
        loras = plan.values["loras"].value if "loras" in plan.values else ()
        return (
            plan.model,
            plan.workflow,
            plan.task,
            tuple(plan.stages),
            tuple(lora["id"] for lora in loras or ()),
        )

    def remember(self, engine: str, key: Hashable, error: EaselError) -> None:
        with self._lock:
            if len(self._known) >= _MAX_ENTRIES:
                self._known.clear()
            self._known.setdefault(key, {})[engine] = self._clock() + KNOWN_S, error

    def of(self, key: Hashable) -> dict[str, EaselError]:
        """Engine -> what it lacks."""
        now, entries = self._clock(), self._known.get(key)
        return {name: error for name, (until, error) in list((entries or {}).items()) if now < until}
