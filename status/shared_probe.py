"""A probe that all threads of a process share, for callers that must not wait for a server that does not respond."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SharedProbe(Generic[Result]):
    """Runs `probe` in a thread of its own when somebody asks, at most once in `interval_s` and never twice at the same
    time. `probe` must not raise, and must end by itself; it returns None if it found out nothing."""

    def __init__(
        self,
        probe: Callable[[], Result | None],
        interval_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._interval_s, self._clock = probe, interval_s, clock
        self._lock = threading.Lock()
        self._round: _Round[Result] | None = None
        self.last: Result | None = None
        """The last result, however old"""

    def latest(self, timeout_s: float) -> Result | None:
        """A result not older than the interval, or that of the round which runs now; None if that round has not ended
        `timeout_s` after it began."""
        with self._lock:
            now, current = self._clock(), self._round
            if current is None or (
                current.ended_at is not None and now - current.ended_at >= self._interval_s
            ):
                current = _Round(began_at=now)
                threading.Thread(target=self._run, args=(current,), name="shared-probe", daemon=True).start()
                self._round = current  # only now: without the thread nobody would end it
        current.done.wait(max(0.0, current.began_at + timeout_s - now))
        return current.result

    def _run(self, current: _Round[Result]) -> None:
        try:
            current.result = self._probe()
            if current.result is not None:
                self.last = current.result
        finally:
            current.ended_at = self._clock()
            current.done.set()


class _Round(Generic[Result]):
    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.ended_at: float | None = None
        self.result: Result | None = None
        self.done = threading.Event()
