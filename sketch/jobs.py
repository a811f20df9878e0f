"""The queue of jobs and the memory of those that ended. Safe for threads; knows nothing of what a job does."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST_HISTORY = 1000


@dataclass(frozen=True)
class Job:
    """A graph that was accepted; `outputs` are the output nodes that are to run."""

    number: float
    prompt_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    outputs: list[str]
    interrupted: threading.Event = field(default_factory=threading.Event)

    def listed(self) -> list[Any]:
        """As `/queue` and `/history` show it."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


class JobQueue:
    """Lowest number first, one at a time. `changed` is called, from any thread, whenever the length may have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Condition()
        self._arrivals = itertools.count()
        self._pending: list[tuple[float, int, Job]] = []
        self._running: Job | None = None
        self._history: dict[str, Any] = {}
        self._free = False
        self._closed = False

    def put(self, job: Job) -> None:
        """Adds a job."""
        with self._lock:
            heapq.heappush(self._pending, (job.number, next(self._arrivals), job))
            self._lock.notify()
        self._changed()

    def take(self) -> tuple[Job | None, bool]:
        """Waits for something to do: (the next job, or None once closed; whether memory is to be freed before it)."""
        with self._lock:
            self._lock.wait_for(lambda: self._pending or self._free or self._closed)
            free, self._free = self._free, False
            if self._pending and not self._closed:
                self._running = heapq.heappop(self._pending)[2]
            job = self._running
        if job:
            self._changed()
        return job, free

    def finish(self, entry: dict[str, Any]) -> None:
        """Moves the running job to the history."""
        with self._lock:
            job, self._running = self._running, None
            if job is None:
                return
            self._history.pop(job.prompt_id, None)
            while len(self._history) >= LONGEST_HISTORY:
                del self._history[next(iter(self._history))]
            self._history[job.prompt_id] = {"prompt": job.listed(), **entry}
        self._changed()

    def close(self) -> None:
        """Ends it all: interrupts what runs, and `take` gives no more."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self.interrupt(None)

    @property
    def closed(self) -> bool:
        return self._closed

    def remaining(self) -> int:
        """How many jobs wait or run."""
        with self._lock:
            return len(self._pending) + (self._running is not None)

    def listed(self) -> tuple[list[Job], list[Job]]:
        """(running, pending); pending in the heap's own order, as ComfyUI shows it."""
        with self._lock:
            return [self._running] if self._running else [], [job for _, _, job in self._pending]

    def delete(self, prompt_ids: Any) -> None:
        """Forgets pending jobs, one for each id; other ids are ignored."""
        for prompt_id in prompt_ids:
            with self._lock:
                found = next((entry for entry in self._pending if entry[2].prompt_id == prompt_id), None)
                if found:
                    self._pending.remove(found)
                    heapq.heapify(self._pending)
            if found:
                self._changed()

    def clear(self) -> None:
        """Forgets every pending job."""
        with self._lock:
            self._pending.clear()
        self._changed()

    def interrupt(self, prompt_id: str | None) -> None:
        """Stops the running job, if it is this one (None: whichever it is)."""
        with self._lock:
            if self._running and prompt_id in (None, self._running.prompt_id):
                self._running.interrupted.set()

    def free(self) -> None:
        """Asks the worker to let its cache go when it is next between jobs."""
        with self._lock:
            self._free = True
            self._lock.notify()

    def history(self, most: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Entries in the order they ended; the newest `most` of them, or those from `offset` on."""
        with self._lock:
            entries = list(self._history.items())
        if offset < 0:
            offset = max(0, len(entries) - most) if most is not None else 0
        return dict(entries[offset:] if most is None else entries[offset : offset + most])

    def history_of(self, prompt_id: str) -> dict[str, Any]:
        """{id: entry}, or {} when it has not ended or is unknown."""
        with self._lock:
            return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}

    def forget(self, prompt_ids: Any) -> None:
        """Drops entries of the history; unknown ids are ignored."""
        for prompt_id in prompt_ids:
            with self._lock:
                self._history.pop(prompt_id, None)

    def forget_all(self) -> None:
        """Empties the history."""
        with self._lock:
            self._history.clear()
