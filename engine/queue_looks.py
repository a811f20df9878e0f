"""One look at ComfyUI's queue for all waiting jobs of a process. The queue lists the graphs of all jobs, so looks of each
job would cost the more, the more jobs wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine.inbox import Inbox, QueueLook
from engine.values import QueueState
from errors import EngineUnreachable
from system_errors import shortage_as


class QueueLooks:
    """Looks in a thread of its own, so that a slow answer delays no job's deadline or cancel. Thread-safe."""

    def __init__(self, queue: Callable[[], QueueState]) -> None:
        self._queue = queue
        self.begun = 0
        """The number of the look that began last"""
        self._lock = threading.Lock()
        self._latest: QueueLook | None = None
        self._waiting: list[tuple[int, Inbox]] = []
        self._is_looking = False

    def request(self, inbox: Inbox, newer_than: int) -> None:
        """Put a look with a number above `newer_than` into `inbox`: the latest one, or the next. Returns at once."""
        with self._lock:
            if self._latest is not None and self._latest.number > newer_than:
                inbox.put(self._latest)
                return
            self._waiting.append((newer_than, inbox))
            if self._is_looking:
                return
            self._is_looking = True
        try:
            threading.Thread(target=self._look_for_all, name="easel-queue", daemon=True).start()
        except RuntimeError:  # no more threads
            self._look_for_all()

    def _look_for_all(self) -> None:
        while self._look():
            pass

    def _look(self) -> bool:
        """Look once. Whether somebody waits for another look."""
        with self._lock:
            self.begun += 1
            number = self.begun
        result: QueueState | EngineUnreachable
        try:
            result = self._queue()
        except Exception as error:
            result = _unreachable(error)
        with self._lock:
            self._latest = look = QueueLook(number, result)
            served = [inbox for newer_than, inbox in self._waiting if number > newer_than]
            self._waiting = [entry for entry in self._waiting if number <= entry[0]]
            self._is_looking = bool(self._waiting)
            for inbox in served:
                inbox.put(look)
            return self._is_looking


def _unreachable(error: Exception) -> EngineUnreachable:
    """Whatever the error is, those who wait must hear of it, and the next look must be able to begin."""
    if isinstance(error, EngineUnreachable):
        return error
    message = f"ComfyUI's queue could not be read: {type(error).__name__}."
    return shortage_as(EngineUnreachable, error) or EngineUnreachable(message)
