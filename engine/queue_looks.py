"""One look at ComfyUI's queue for all waiting jobs of a process. The queue lists the graphs of all jobs, so looks of each
job would cost the more, the more jobs wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine.inbox import Inbox, QueueLook
from engine.values import QueueState
from errors import EngineUnreachable
from system_errors import shortage_as


def _start(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="easel-queue", daemon=True).start()


class QueueLooks:
    """Looks in a thread of its own, so that a slow answer delays no job's deadline or cancel. Thread-safe."""

    def __init__(
        self, queue: Callable[[], QueueState], start_thread: Callable[[Callable[[], None]], None] = _start
    ) -> None:
        self._queue, self._start_thread = queue, start_thread
        self.begun = 0
        """The number of the look that began last"""
        self._lock = threading.Lock()
        self._latest: QueueLook | None = None
        self._waiting: dict[Inbox, int] = {}
        self._is_looking = False

    def request(self, inbox: Inbox, newer_than: int) -> None:
        """Put a look with a number above `newer_than` into `inbox`: the latest one, or the next. Returns at once, and can be
        repeated while nothing has come."""
        with self._lock:
            if self._latest is not None and self._latest.number > newer_than:
                inbox.put(_own(self._latest))
                return
            self._waiting[inbox] = newer_than
            if self._is_looking:
                return
            self._is_looking = True
        try:
            self._start_thread(self._look_for_all)
        except RuntimeError:
            # No more threads: one look for those who wait now. This thread has its own job: the others ask again.
            if self._look():
                with self._lock:
                    self._is_looking = False

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
            for inbox in [inbox for inbox, newer_than in self._waiting.items() if number > newer_than]:
                del self._waiting[inbox]
                inbox.put(_own(look))
            self._is_looking = bool(self._waiting)
            return self._is_looking


def _own(look: QueueLook) -> QueueLook:
    """With an error of its own: each job that raises it adds its frames to it, with all that they refer to."""
    error = look.result
    if isinstance(error, EngineUnreachable):
        return QueueLook(look.number, type(error)(error.message, **error.details))
    return look


def _unreachable(error: Exception) -> EngineUnreachable:
    """Whatever the error is, those who wait must hear of it, and the next look must be able to begin."""
    if isinstance(error, EngineUnreachable):
        return error
    message = f"ComfyUI's queue could not be read: {type(error).__name__}."
    return shortage_as(EngineUnreachable, error) or EngineUnreachable(message)
