"""The places of the event streams of a process, which clients keep open for long."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

from errors import TooManyEventStreams

_RETRY_AFTER_S = 5
_SHARE_OF_ONE_OWNER = 0.75
"""Of the streams, while there are several keys: the others then always find one"""


class EventStreams:
    """The streams of this process, each of which holds a thread. `limit`: how many there may be. `has_several_owners`:
    whether each must leave some to others."""

    def __init__(self, limit: int, has_several_owners: Callable[[], bool]) -> None:
        self._limit, self._has_several_owners = limit, has_several_owners
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, owner: str) -> Callable[[], None]:
        """Take a place for a stream of `owner`; call what is returned at its end. Raises TooManyEventStreams."""
        share = self._limit
        if owner and self._has_several_owners():
            share = max(1, int(self._limit * _SHARE_OF_ONE_OWNER))
        with self._lock:
            own, total = self._open[owner], self._open.total()
            if total < self._limit and own < share:
                self._open[owner] += 1
                return lambda: self._leave(owner)
        whose = f"{total} clients" if total >= self._limit else f"{own} clients with this key"
        rest = "" if total >= self._limit else "; the other places are for other keys"
        raise TooManyEventStreams(
            f"{whose} follow events already{rest}. Ask for the status, or the job itself, instead.",
            retry_after_s=_RETRY_AFTER_S,
        )

    def _leave(self, owner: str) -> None:
        with self._lock:
            self._open[owner] -= 1
            self._open = +self._open


class ReleasedStream:
    """An iterator that calls `leave` once, when it is closed."""

    def __init__(self, events: Iterator[bytes], leave: Callable[[], None]) -> None:
        self._events, self._leave = events, leave
        self._lock, self._is_open = threading.Lock(), True

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def close(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._leave()
