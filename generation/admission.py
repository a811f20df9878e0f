"""Limits how many requests wait for pictures."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from errors import QueueFull

_DEFAULT_RETRY_AFTER_S = 10
_SHARE_OF_ONE_KEY = 0.75
"""Of the places, while there are several keys: the others then always find one"""


@dataclass
class Admission:
    """Counts the requests of this process that wait for pictures, in all and of each key.

    Each waiting request holds a thread, and some threads must stay free for cheap requests. `retry_after_s` estimates
    when the requests that wait now will be done; None if unknown. `has_several_keys`: whether a key must leave places to
    others.
    """

    limit: int
    retry_after_s: Callable[[], int | None] = lambda: None
    has_several_keys: Callable[[], bool] = lambda: False
    _places: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        """How many requests wait."""
        return self._places.total()

    @contextlib.contextmanager
    def of(self, key: str) -> Iterator[None]:
        """A place for a request of `key` (its name; empty for none) inside the block. Raises QueueFull."""
        limit_of_key = self.limit
        if key and self.has_several_keys():
            limit_of_key = max(1, int(self.limit * _SHARE_OF_ONE_KEY))
        with self._lock:
            own, total = self._places[key], self._places.total()
            is_admitted = total < self.limit and own < limit_of_key
            self._places[key] += is_admitted
        if not is_admitted:
            raise self._refusal(own if total < self.limit else None, total)
        try:
            yield
        finally:
            with self._lock:
                self._places[key] -= 1

    def _refusal(self, own: int | None, total: int) -> QueueFull:
        """`own`: the number of the key's requests, if these are what is too many."""
        retry_after_s = self.retry_after_s() or _DEFAULT_RETRY_AFTER_S
        if own is None:
            text = f"{total} requests are already waiting for pictures."
        else:
            text = f"{own} requests of this key are already waiting for pictures; the other places are for other keys."
        return QueueFull(text, waiting=total, retry_after_s=retry_after_s)
