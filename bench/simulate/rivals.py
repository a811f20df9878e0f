"""The two ways that Easel's choice is compared with: one queue for the first free engine (FIFO), and engines in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from bench.simulate.engines import Engine
from bench.simulate.traces import Job


class Placement(Protocol):
    """Decides which engine draws which job. `looks_every_s`: how often it looks at the waiting jobs again; 0: never."""

    looks_every_s: float

    def arrived(self, job: Job, now: float) -> None:
        """A job has come."""

    def started(self, engine: Engine, job: Job, now: float, duration_s: float) -> None:
        """An engine has begun a job, which will take so long."""

    def next_job(self, engine: Engine, now: float) -> Job | None:
        """The job that an engine begins now that it is free; None: none."""

    def look_again(self, now: float) -> None:
        """Look whether waiting jobs should move."""


class Fifo:
    """One queue; the engine that is free first takes the first job."""

    looks_every_s = 0.0

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()

    def arrived(self, job: Job, now: float) -> None:
        self._queue.append(job)

    def started(self, engine: Engine, job: Job, now: float, duration_s: float) -> None:
        pass

    def next_job(self, engine: Engine, now: float) -> Job | None:
        return self._queue.popleft() if self._queue else None

    def look_again(self, now: float) -> None:
        pass


class RoundRobin:
    """Each job goes to the next engine, and waits there."""

    looks_every_s = 0.0

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    def arrived(self, job: Job, now: float) -> None:
        self._engines[job.number % len(self._engines)].waiting.append(job)

    def started(self, engine: Engine, job: Job, now: float, duration_s: float) -> None:
        pass

    def next_job(self, engine: Engine, now: float) -> Job | None:
        return engine.waiting.popleft() if engine.waiting else None

    def look_again(self, now: float) -> None:
        pass
