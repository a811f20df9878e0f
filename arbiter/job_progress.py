"""Progress and cancellation of the jobs of all processes, as files. Only shown and used to cancel; no decision about
the GPU depends on it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atomic_file import write_atomic
from state_files import ensure_folder, read_state

_WRITE_INTERVAL_S = 0.2
"""Between two writes of one job's progress"""


@dataclass(frozen=True)
class JobProgress:
    """Step `step` of `steps` was reached at `at`; the first step was reported at `began` (Unix seconds)."""

    job: str
    step: int
    steps: int
    began: float
    at: float

    @property
    def seconds_per_step(self) -> float | None:
        finished = self.step - 1
        return (self.at - self.began) / finished if finished > 0 and self.at > self.began else None

    @property
    def eta_s(self) -> float | None:
        """Seconds that the remaining steps will take, counted from the last step."""
        seconds = self.seconds_per_step
        return None if seconds is None else max(0.0, seconds * (self.steps - self.step))


def _progress(document: Any) -> JobProgress:
    """Raises TypeError or ValueError if the document is not a progress."""
    progress = JobProgress(**document)
    numbers = (progress.step, progress.steps, progress.began, progress.at)
    if not isinstance(progress.job, str) or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("not a progress")
    return progress


_MAX_TEMPORARY_AGE_S = 60.0


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _MAX_TEMPORARY_AGE_S
    except OSError:
        return False


class JobProgressStore:
    """One or two files for each job (progress, cancelled) in a folder that all processes share."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._reported: dict[str, JobProgress] = {}

    def report(self, job: str, step: int, steps: int) -> None:
        """Report how far a job of this process is. Cheap: most calls write nothing."""
        now, before = self._clock(), self._reported.get(job)
        if before is not None and step < steps and 0 <= now - before.at < _WRITE_INTERVAL_S:
            return
        restarted = before is None or step <= before.step or steps != before.steps
        progress = JobProgress(job, step, steps, now if restarted or before is None else before.began, now)
        self._reported[job] = progress
        with contextlib.suppress(OSError):  # a full disk must not fail the job
            write_atomic(self._folder / f"{job}.json", json.dumps(asdict(progress)).encode())

    def get(self, job: str) -> JobProgress | None:
        """How far a job of any process is, if it was reported."""
        return read_state(self._folder / f"{job}.json", _progress)

    def cancel(self, job: str) -> None:
        """Mark a job as cancelled. Raises OSError."""
        ensure_folder(self._folder)
        (self._folder / f"{job}.cancelled").touch()

    def is_cancelled(self, job: str) -> bool:
        return os.path.exists(f"{self._folder}/{job}.cancelled")

    def remove(self, job: str) -> None:
        """Remove the files of a job that has ended."""
        was_reported = self._reported.pop(job, None) is not None
        for suffix in (".json", ".cancelled") if was_reported else (".cancelled",):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._folder}/{job}{suffix}")

    def keep_only(self, jobs: Iterable[str]) -> None:
        """Remove the files of all other jobs: a killed process could not remove its own."""
        kept = set(jobs)
        for path in self._folder.glob("*"):
            # A temporary file of a write in progress starts with a dot; it is removed only when it is old.
            if path.stem not in kept and (path.name[0] != "." or _is_abandoned(path)):
                with contextlib.suppress(OSError):
                    path.unlink()
