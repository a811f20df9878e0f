"""The queue of jobs and the history of finished ones. Thread-safe; does not know what a job does."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_HISTORY = 1000


@dataclass(frozen=True)
class Job:
    """A graph that was accepted; `outputs` are the output nodes to run."""

    number: float
    prompt_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    outputs: list[str]
    interrupted: threading.Event = field(default_factory=threading.Event)

    def as_list(self) -> list[Any]:
        """The job as in `/queue` and `/history`."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


class JobQueue:
    """Runs the lowest number first, one job at a time. Calls `on_change`, from any thread, whenever its length may have
    changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Condition()
        self._arrivals = itertools.count()
        self._pending: list[tuple[float, int, Job]] = []
        self._running: Job | None = None
        self._history: dict[str, Any] = {}
        self._free_requested = False
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job."""
        with self._lock:
            heapq.heappush(self._pending, (job.number, next(self._arrivals), job))
            self._lock.notify()
        self._on_change()

    def take(self) -> tuple[Job | None, bool]:
        """Wait for work. Returns the next job, or None once closed, and whether to free memory before it."""
        with self._lock:
            self._lock.wait_for(lambda: self._pending or self._free_requested or self._closed)
            free, self._free_requested = self._free_requested, False
            if self._pending and not self._closed:
                self._running = heapq.heappop(self._pending)[2]
            job = self._running
        if job:
            self._on_change()
        return job, free

    def finish(self, entry: dict[str, Any]) -> None:
        """Move the running job to the history."""
        with self._lock:
            job, self._running = self._running, None
            if job is None:
                return
            self._history.pop(job.prompt_id, None)
            while len(self._history) >= MAX_HISTORY:
                del self._history[next(iter(self._history))]
            self._history[job.prompt_id] = {"prompt": job.as_list(), **entry}
        self._on_change()

    def close(self) -> None:
        """Interrupt the running job and make `take` return no more jobs."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self.interrupt(None)

    @property
    def closed(self) -> bool:
        return self._closed

    def remaining(self) -> int:
        """The number of pending and running jobs."""
        with self._lock:
            return len(self._pending) + (self._running is not None)

    def running_and_pending(self) -> tuple[list[Job], list[Job]]:
        """(running, pending); pending in the heap's own order, as ComfyUI returns it."""
        with self._lock:
            return [self._running] if self._running else [], [job for _, _, job in self._pending]

    def delete(self, prompt_ids: Any) -> None:
        """Delete pending jobs, one for each id; unknown ids are ignored."""
        for prompt_id in prompt_ids:
            with self._lock:
                entry = next((entry for entry in self._pending if entry[2].prompt_id == prompt_id), None)
                if entry:
                    self._pending.remove(entry)
                    heapq.heapify(self._pending)
            if entry:
                self._on_change()

    def clear(self) -> None:
        """Delete all pending jobs."""
        with self._lock:
            self._pending.clear()
        self._on_change()

    def interrupt(self, prompt_id: str | None) -> None:
        """Interrupt the running job if it has this id (None: any)."""
        with self._lock:
            if self._running and prompt_id in (None, self._running.prompt_id):
                self._running.interrupted.set()

    def request_free(self) -> None:
        """Ask the worker to clear its cache before its next job."""
        with self._lock:
            self._free_requested = True
            self._lock.notify()

    def history(self, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Entries in the order the jobs ended: the newest `max_items`, or those from `offset` on."""
        with self._lock:
            entries = list(self._history.items())
        if offset < 0:
            offset = max(0, len(entries) - max_items) if max_items is not None else 0
        return dict(entries[offset:] if max_items is None else entries[offset : offset + max_items])

    def history_of(self, prompt_id: str) -> dict[str, Any]:
        """{id: entry}, or {} if the job has not ended or is unknown."""
        with self._lock:
            return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}

    def delete_history(self, prompt_ids: Any) -> None:
        """Delete entries of the history; unknown ids are ignored."""
        for prompt_id in prompt_ids:
            with self._lock:
                self._history.pop(prompt_id, None)

    def clear_history(self) -> None:
        with self._lock:
            self._history.clear()
