"""Limits how many requests wait for pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from errors import QueueFull

_DEFAULT_RETRY_AFTER_S = 10


@dataclass
class Admission:
    """A context manager that counts the requests of this process that wait for pictures; raises QueueFull at `limit`.

    Each waiting request holds a thread, and some threads must stay free for cheap requests. `retry_after_s` estimates
    when the requests that wait now will be done; None if unknown.
    """

    limit: int
    retry_after_s: Callable[[], int | None] = lambda: None
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> None:
        with self._lock:
            if self.count >= self.limit:
                raise QueueFull(
                    f"{self.count} requests are already waiting for pictures.",
                    waiting=self.count,
                    retry_after_s=self.retry_after_s() or _DEFAULT_RETRY_AFTER_S,
                )
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1
