"""What a drawing knows of the running of its jobs, on the engines of this host or on other hosts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from arbiter import Sender
from compiler import Catalogue, Compiled
from compiler.values import Nodes
from deadline import time_limit
from engine import Outcome
from errors import EaselError, JobTimedOut
from generation.engine_session import JobCallbacks
from generation.record import DrawingRecord
from generation.uploads import Uploads


class Session(Protocol):
    """An engine of this host, or another host, as it draws one request."""

    @property
    def name(self) -> str:
        """That of the engine or of the host."""

    @property
    def uses_gpu(self) -> bool:
        """False for sketches."""

    @property
    def is_sketch(self) -> bool:
        """Whether a sketch engine draws. Raises EngineUnreachable."""

    def saving_nodes(self, job: int) -> Nodes:
        """The graph of a job that saves its pictures, as the engine got it. `job`: its index"""

    def erase_uploads(self) -> None:
        """Overwrite the files that the engine got."""


@dataclass(frozen=True)
class Redrawn:
    """A job that an engine did not finish and another one drew, with the same seed. `code`: of the error."""

    prompt_id: str
    failed_engine: str
    engine: str
    code: str


@dataclass(frozen=True)
class JobResult:
    """`failure`: the engine that had begun the job and failed, and its error."""

    outcome: Outcome
    session: Session
    queued_s: float
    failure: tuple[str, EaselError] | None = None

    @property
    def redrawn(self) -> Redrawn | None:
        if self.failure is None:
            return None
        engine, error = self.failure
        return Redrawn(self.outcome.prompt_id, engine, self.session.name, error.code)


class TimeLeft:
    """The time that a request has. `deadline` is in the time of `clock`. Thread-safe."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline, self._clock = deadline, clock
        self._lock = threading.Lock()

    def seconds(self) -> float:
        """Raises JobTimedOut if there is none."""
        remaining_s = self._deadline - self._clock()
        if remaining_s <= 0:
            raise JobTimedOut("The request timed out before all of its jobs had started.")
        return remaining_s

    def limit(self) -> contextlib.AbstractContextManager[None]:
        """For every call to a server inside the block."""
        return time_limit(self._deadline - self._clock())

    def extend(self, seconds: float) -> None:
        with self._lock:
            self._deadline += seconds


@dataclass(frozen=True)
class RequestedJobs:
    """What one request has drawn, and in which time. `id`: that of the request. `uploads`: the files that its graphs read"""

    id: str
    compiled: Compiled
    catalogue: Catalogue
    uploads: Uploads
    time_left: TimeLeft


class Runs(Protocol):
    """The running of the jobs of one request."""

    counts_waiting: bool
    """Whether the time in which it waits for the GPU is a part of its own"""

    @property
    def names_engines(self) -> bool:
        """Whether the answer says which engine drew a picture."""

    @property
    def sessions(self) -> Sequence[Session]:
        """All that were chosen for one of the jobs."""

    def prepare(self, job: str) -> Session:
        """The one that would get the first job now. Raises why there is none."""

    def results(
        self,
        jobs: Sequence[str],
        callbacks: JobCallbacks,
        record: DrawingRecord,
        *,
        previews: bool,
        sender: Sender,
        prompt: str,
    ) -> Generator[JobResult, None, None]:
        """Run all jobs; yields the results in their order. `jobs`: their ids. Calls the callbacks in the thread that
        iterates. `prompt`: what the status shows of it."""


class Hosts(Protocol):
    """Other hosts, which draw the jobs instead of the engines of this one."""

    def runs(self, requested: RequestedJobs) -> Runs:
        """Of one request."""

    def seconds_until_free(self) -> int | None:
        """How long until a new job can begin, in whole seconds; None if unknown."""
