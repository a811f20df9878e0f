"""Whose job is drawn next. A job gets its turn when it enters the queue, see `next_turn`. What changes later is kept in a
small file: which turn it is, and by how much the jobs of an owner that could not be drawn in their turns come later. If
that file is lost or damaged, the jobs come in the turns that their names have."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from atomic_file import write_atomic
from image_jobs.job_names import QueuedName
from state_files import read_state

_MAX_TURN = 10**9
"""One more digit fits into the names of the queue"""


@dataclass(frozen=True)
class Turns:
    """`now`: the highest turn of a job that was begun. `delays`: owner -> how many turns later its jobs come than their
    names say. `had`: the owners that had a job in this turn."""

    now: int = 0
    delays: Mapping[str, int] = field(default_factory=dict)
    had: tuple[str, ...] = ()

    def of(self, job: QueuedName) -> int:
        """The turn of a job."""
        return job.turn + self.delays.get(job.owner, 0)

    def in_order(self, queue: Sequence[QueuedName]) -> list[QueuedName]:
        """The jobs in the order in which they are drawn. `queue`: in the order of their names."""
        return sorted(queue, key=lambda job: (self.of(job), job.number)) if self.delays else list(queue)

    def after_begin(self, job: QueuedName) -> Turns:
        """After that job was begun."""
        turn = self.of(job)
        if turn > self.now:
            return replace(self, now=turn, had=(job.owner,))
        return self if job.owner in self.had else replace(self, had=(*self.had, job.owner))

    def first_for(self, owner: str) -> int:
        """The first turn that a job of `owner` may have now."""
        return self.now + (owner in self.had)

    def caught_up(self, first: QueuedName) -> Turns:
        """After the turns of the jobs of an owner, the first of which is `first`, have passed: they begin with the present
        one, or the next if the owner had that. Otherwise an owner whose jobs have waited for a limit would have all those
        turns at once, before everybody else."""
        missed = max(0, self.first_for(first.owner) - self.of(first))
        return replace(self, delays={**self.delays, first.owner: self.delays.get(first.owner, 0) + missed})

    def of_owners(self, owners: Iterable[str]) -> Turns:
        """Without the delays of all others."""
        kept = set(owners)
        delays = {owner: delay for owner, delay in self.delays.items() if delay and owner in kept}
        return replace(self, delays=delays)


def next_turn(queue: Sequence[QueuedName], owner: str, turns: Turns) -> int:
    """The turn, as its name has it, of a new job of `owner`: one after the last of its own, and not before the present one.
    So the owners take turns, however many jobs each of them has, and a job that waits is never overtaken without end.

    `queue`: in its order. `turns`: without a delay of `owner` if it has no job in the queue.
    """
    own = max((job.turn for job in queue if job.owner == owner), default=-1)
    # Those of the file may be lost: then the first in the queue says which turn it is.
    first = max(turns.first_for(owner), turns.of(queue[0]) if queue else 0)
    return max(first - turns.delays.get(owner, 0), own + 1)


_UNKNOWN = Turns()


class TurnFile:
    """The turns of all processes. Changes are made by one of them at a time, see `JobQueue`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int] | None, Turns] = (None, _UNKNOWN)

    def turns(self) -> Turns:
        """Costs one `stat` while nobody has changed them: each write makes a new file."""
        try:
            entry = self._path.stat()
        except OSError:
            return _UNKNOWN
        stamp = entry.st_ino, entry.st_mtime_ns
        if stamp != self._read[0]:
            self._read = stamp, read_state(self._path, _turns) or _UNKNOWN
        return self._read[1]

    def write(self, turns: Turns) -> None:
        """A full disk only costs fairness."""
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(asdict(turns)).encode(), mode=0o600)


def _turns(document: Any) -> Turns:
    """Raises TypeError, AttributeError or ValueError for a document of another shape."""
    turns = Turns(document["now"], dict(document["delays"]), tuple(document["had"]))
    if not all(isinstance(owner, str) for owner in turns.had) or not all(
        type(number) is int and 0 <= number < _MAX_TURN for number in (turns.now, *turns.delays.values())
    ):
        raise ValueError("not turns")
    return turns
