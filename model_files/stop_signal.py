"""Ends a pull at once: threads that wait for a server would notice an event only after their time limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class StopSignal(threading.Event):
    """An event that, when it is set, also breaks off the transfers that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._transfers: list[Callable[[], None]] = []

    def set(self) -> None:
        """Never raises."""
        super().set()
        with self._guard:
            transfers = list(self._transfers)
        for break_off in transfers:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                break_off()

    @contextlib.contextmanager
    def breaks_off(self, break_off: Callable[[], None]) -> Iterator[None]:
        """`break_off` is called, in another thread, if the signal is set inside the context."""
        with self._guard:
            self._transfers.append(break_off)
        try:
            yield
        finally:
            with self._guard:
                self._transfers.remove(break_off)
