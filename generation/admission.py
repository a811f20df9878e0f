"""The places of those that wait for pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from errors import QueueFull

_RETRY_AFTER_S = 10


@dataclass
class Admission:
    """How many requests wait for pictures in this process.

    No more than `limit` wait: each holds a thread, and some must stay free for the cheap requests. `retry_after_s`
    says when those that wait now will be through.
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
                    retry_after_s=self.retry_after_s() or _RETRY_AFTER_S,
                )
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1
