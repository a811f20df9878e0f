"""Where the messages for one job wait until its thread takes them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty

from engine.messages import Event, Frame
from engine.values import QueueState
from errors import EaselError, EngineUnreachable


@dataclass(frozen=True)
class SocketLost:
    """The socket closed. ComfyUI does not send the missed events of its jobs again."""


@dataclass(frozen=True)
class CancelSignal:
    """Another thread of this process cancels the job, for this reason."""

    reason: EaselError


@dataclass(frozen=True)
class QueueLook:
    """ComfyUI's queue, or why it could not be had. `number`: of the looks in the order in which they began."""

    number: int
    result: QueueState | EngineUnreachable


Item = Event | Frame | SocketLost | CancelSignal | QueueLook


class Inbox:
    """Filled by any thread, emptied by one."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._wake = threading.Lock()
        self._wake.acquire()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item, *, wakes: bool = True) -> None:
        """Add an item. Without `wakes` a waiting thread gets it together with the next one, or when its timeout ends."""
        self._items.append(item)
        if wakes:
            with contextlib.suppress(RuntimeError):  # it was not taken since the last call
                self._wake.release()

    def drop_messages(self) -> None:
        """Keep only what cancels the job. For the thread that takes the items."""
        for _ in range(len(self._items)):
            item = self._items.popleft()
            if isinstance(item, CancelSignal):
                self._items.append(item)

    def get(self, timeout_s: float) -> Item:
        """The oldest item. Raises queue.Empty if there is none within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self._items:
            if not self._wake.acquire(timeout=max(0.0, deadline - time.monotonic())) and not self._items:
                raise Empty
        return self._items.popleft()
