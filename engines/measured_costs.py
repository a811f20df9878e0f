"""What drawing costs on one engine, by model: how long a job takes, and loading the model before it. Measured by all
processes, kept in a file that they share. A file that is lost or damaged is measured again."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atomic_file import write_atomic
from state_files import ensure_folder, read_state

_WEIGHT = 0.3
"""Of the newest measurement in a moving average"""
_MAX_MODELS = 1000
_MAX_HISTORY = 50
_HOUR_S = 3600.0
_MAX_PICTURES = 1000
"""Of one job"""
_MAX_SECONDS = 1e11
"""So that a Unix time is one, too"""
_MIN_LOAD_S = 0.05
"""What a first job took longer than others by less is no load"""


@dataclass(frozen=True)
class Cost:
    """`render_s`: of a job whose model was loaded; None if none was measured. `first_s`: of one whose model was not."""

    render_s: float | None = None
    first_s: float | None = None

    @property
    def load_s(self) -> float | None:
        """None if one of both was not measured."""
        if self.render_s is None or self.first_s is None:
            return None
        extra_s = self.first_s - self.render_s
        return extra_s if extra_s > _MIN_LOAD_S else 0.0


@dataclass(frozen=True)
class EndedJob:
    """`at`: when it ended (Unix time). `pictures`: how many it made."""

    model: str
    at: float
    pictures: int = 1


@dataclass(frozen=True)
class Costs:
    """`history`: the last jobs, the newest first. `unloaded_at`: when the engine was last found to have lost what it had
    loaded (Unix time)."""

    history: tuple[EndedJob, ...] = ()
    models: Mapping[str, Cost] = field(default_factory=dict)
    unloaded_at: float = 0.0

    def with_job(self, job: EndedJob, run_s: float, *, was_loaded: bool) -> Costs:
        """These costs after one more job."""
        model = job.model
        cost = self.models.get(model, Cost())
        name = "render_s" if was_loaded else "first_s"
        before = getattr(cost, name)
        mean = run_s if before is None else before + _WEIGHT * (run_s - before)
        models = {each: known for each, known in self.models.items() if each != model}
        models[model] = replace(cost, **{name: mean})
        history = (job, *self.history)[:_MAX_HISTORY]
        return Costs(history, dict(list(models.items())[-_MAX_MODELS:]), self.unloaded_at)

    def recent(self, since: float = 0.0) -> tuple[str, ...]:
        """The models of the last jobs, the newest first, each once; only those that were used after `since` and after they
        were lost."""
        since = max(since, self.unloaded_at)
        return tuple(dict.fromkeys(job.model for job in self.history if job.at > since))

    @property
    def ended_at(self) -> float:
        """When the last job ended (Unix time); 0 if there was none."""
        return self.history[0].at if self.history else 0.0

    def pictures_per_hour(self, now: float) -> int:
        """Of the last hour; of the last jobs if there were more than are remembered."""
        recent = [job for job in self.history if 0 <= now - job.at < _HOUR_S]
        if len(recent) < _MAX_HISTORY:
            return sum(job.pictures for job in recent)
        since_s = max(1.0, now - recent[-1].at)
        return round(sum(job.pictures for job in recent[:-1]) * _HOUR_S / since_s)

    @property
    def mean_render_s(self) -> float | None:
        """Over all models; None if nothing was measured."""
        known = [cost.render_s for cost in self.models.values() if cost.render_s is not None]
        return sum(known) / len(known) if known else None


class CostStore:
    """The file of one engine. Safe for threads and processes: of two jobs that end at the same moment one may be lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cached: tuple[tuple[int, int] | None, Costs] = None, Costs()
        """The file's inode and time, and its content"""

    def read(self) -> Costs:
        """Costs one stat call while the file is unchanged."""
        try:
            found = os.stat(self._path)
        except OSError:
            # It was deleted, or the disk cannot be read: what this process knows is better than nothing.
            return self._cached[1]
        stamp = found.st_ino, found.st_mtime_ns
        if stamp != self._cached[0]:
            self._cached = stamp, read_state(self._path, _costs) or Costs()
        return self._cached[1]

    def write(self, costs: Costs) -> None:
        """A disk that is full must not fail a job: this process then keeps them for itself."""
        content = {
            "history": [[job.model, job.at, job.pictures] for job in costs.history],
            "unloaded_at": costs.unloaded_at,
            "models": {model: [cost.render_s, cost.first_s] for model, cost in costs.models.items()},
        }
        self._cached = None, costs
        with contextlib.suppress(OSError):
            ensure_folder(self._path.parent)
            write_atomic(self._path, json.dumps(content).encode())


def _costs(document: Any) -> Costs:
    """Raises Exception for a document of another shape."""
    models = {str(model): Cost(*map(_seconds, pair)) for model, pair in document["models"].items()}
    history = [
        EndedJob(str(model), _seconds(at) or 0.0, int(pictures))
        for model, at, pictures in document["history"]
    ]
    if not all(0 <= job.pictures <= _MAX_PICTURES for job in history):
        raise ValueError("not a number of pictures")
    # A clock that was set back must not make an engine look empty for long.
    return Costs(tuple(history), models, min(_seconds(document.get("unloaded_at")) or 0.0, time.time()))


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_SECONDS:
        raise ValueError("not seconds")
    return float(value)
