"""Ends a pull at once: threads that wait for a server would notice an event only after their time limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar


class Cancelled(Exception):
    """The pull was cancelled. What has arrived is kept."""


_Result = TypeVar("_Result")


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

    def wait_for(self, call: Callable[[], _Result], discard: Callable[[_Result], None]) -> _Result:
        """The result of `call`, which runs in a thread of its own, or what it raises. Raises Cancelled at once if the
        signal is set meanwhile; a result that comes later is given to `discard`."""
        running = _Running(call, discard)
        with self.breaks_off(running.ended.set):
            if not self.is_set():
                threading.Thread(target=running.run, daemon=True).start()
                running.ended.wait()
        return running.result()


class _Running(Generic[_Result]):
    def __init__(self, call: Callable[[], _Result], discard: Callable[[_Result], None]) -> None:
        self._call, self._discard = call, discard
        self._guard = threading.Lock()
        self._is_given_up = False
        self._results: list[_Result] = []
        self._error: Exception | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            found = self._call()
        except Exception as error:
            self._error = error
        else:
            with self._guard:
                if not self._is_given_up:
                    self._results.append(found)
            if not self._results:
                with contextlib.suppress(Exception):
                    self._discard(found)
        self.ended.set()

    def result(self) -> _Result:
        with self._guard:
            self._is_given_up = True
            if self._results:
                return self._results[0]
        if self._error is not None:
            raise self._error
        raise Cancelled
