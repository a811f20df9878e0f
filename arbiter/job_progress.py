"""What the jobs of all processes show to whoever looks: how far each is, and that its owner wants it no more. Only for
showing and cancelling; nothing is decided by what stands here."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from atomic_file import write_atomic

log = logging.getLogger("easel.gpu")

_SHOW_S = 0.2
"""Between two writes of one job's progress"""


@dataclass(frozen=True)
class JobProgress:
    """Step `step` of `steps` was reached at `at`; the first was seen at `began` (Unix seconds)."""

    job: str
    step: int
    steps: int
    began: float
    at: float

    @property
    def seconds_a_step(self) -> float | None:
        done = self.step - 1
        return (self.at - self.began) / done if done > 0 and self.at > self.began else None

    @property
    def eta_s(self) -> float | None:
        """Seconds that the remaining steps will take, from the last step on."""
        each = self.seconds_a_step
        return None if each is None else max(0.0, each * (self.steps - self.step))


_ABANDONED_S = 60.0


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_S
    except OSError:
        return False


class JobProgressStore:
    """A file for each job in a folder that all processes share."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._shown: dict[str, JobProgress] = {}

    def show(self, job: str, step: int, steps: int) -> None:
        """Tell how far a job of this process is. Cheap: most calls write nothing."""
        now, before = self._clock(), self._shown.get(job)
        if before is not None and step < steps and now - before.at < _SHOW_S:
            return
        anew = before is None or step <= before.step or steps != before.steps
        progress = JobProgress(job, step, steps, now if anew or before is None else before.began, now)
        self._shown[job] = progress
        with contextlib.suppress(OSError):  # a full disk shall not cost the picture
            write_atomic(self._folder / f"{job}.json", json.dumps(asdict(progress)).encode())

    def progress(self, job: str) -> JobProgress | None:
        """How far a job of any process is, or None."""
        try:
            return JobProgress(**json.loads((self._folder / f"{job}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def cancel(self, job: str) -> None:
        """Mark a job as not wanted any more. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{job}.cancelled").touch()

    def is_cancelled(self, job: str) -> bool:
        return (self._folder / f"{job}.cancelled").exists()

    def forget(self, job: str) -> None:
        """Remove what stands here about a job that is over."""
        self._shown.pop(job, None)
        for suffix in (".json", ".cancelled"):
            with contextlib.suppress(OSError):
                (self._folder / f"{job}{suffix}").unlink()

    def sweep(self, living: Iterable[str]) -> None:
        """Forget every job but the living: holders that were killed could not."""
        alive = set(living)
        for path in self._folder.glob("*"):
            # What is being written just now has another name.
            if path.stem not in alive and (path.name[0] != "." or _is_old(path)):
                with contextlib.suppress(OSError):
                    path.unlink()
