"""Which engines this process has found unusable, and until when. They are looked at in the background, so that no request
waits for an engine that does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from errors import EaselError

log = logging.getLogger("easel.engine")

CHECK_INTERVAL_S = 1.0
FAILED_GPU_S = 60.0
"""So long an engine gets no jobs whose GPU has failed: it answers, but every job fails until it is restarted"""


@dataclass(frozen=True)
class Outage:
    """`checked_from`: it is not looked at before that (`time.monotonic`)."""

    reason: EaselError
    since: float
    checked_from: float


class Health:
    """`check`: raises an EaselError if the engine of that name cannot be used; takes seconds at most. Thread-safe."""

    def __init__(
        self,
        check: Callable[[str], None],
        *,
        interval_s: float = CHECK_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check, self._interval_s, self._clock = check, interval_s, clock
        self._outages: dict[str, Outage] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def outage(self, name: str) -> Outage | None:
        """Why the engine cannot be used; None if it can, as far as this process knows."""
        return self._outages.get(name)

    def report(self, name: str, reason: EaselError, hold_s: float = 0.0) -> None:
        """The engine failed. It gets no jobs until it answers again, and for `hold_s` at least."""
        now = self._clock()
        with self._lock:
            known = self._outages.get(name)
            since = known.since if known else now
            self._outages[name] = Outage(reason, since, now + max(hold_s, self._interval_s))
            if known is None:
                log.warning("engine %s gets no jobs for now: %s", name, reason.message)
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="engine-health", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads: the next request tries the engine again
                    del self._outages[name]
                else:
                    self._thread = thread

    def forget(self, name: str) -> None:
        """The engine was removed, or is another one now."""
        with self._lock:
            self._outages.pop(name, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._interval_s)
            for name, outage in list(self._outages.items()):
                if self._clock() >= outage.checked_from:
                    self._look(name, outage)
            with self._lock:
                if not self._outages:
                    self._thread = None
                    return

    def _look(self, name: str, outage: Outage) -> None:
        try:
            self._check(name)
        except EaselError:
            return
        with self._lock:
            if self._outages.get(name) is outage:
                del self._outages[name]
                log.info("engine %s can be used again, after %.0f s", name, self._clock() - outage.since)
