"""Which process is killed when, and how soon somebody noticed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from bench.hosts.ledger import Answer

MAX_NOTICE_S = 5.0


class Kind(StrEnum):
    """What is killed."""

    HOST = "host"
    CHILD = "host's child"
    FRONT_WORKER = "front end's worker"
    FRONT = "front end"
    REDIS = "redis-server"
    ENGINE = "engine"


MUST_BE_NOTICED = frozenset({Kind.HOST, Kind.CHILD})
"""The processes of a host"""


@dataclass
class Kill:
    """`running`: ids of the jobs that were drawn by what was killed. All seconds are counted from the kill. `noticed_s`:
    when there was the first sign that the cluster knows; None if there was none. `answered_s`: when the last of the running
    jobs was answered."""

    kind: Kind
    target: str
    at: float
    running: frozenset[str] = frozenset()
    is_restarted_at_once: bool = True
    noticed_s: float | None = None
    sign: str = ""
    recovered_s: float | None = None
    answered_s: float | None = None

    @property
    def is_late(self) -> bool:
        """Whether it should have been noticed and was not, or too late."""
        return self.kind in MUST_BE_NOTICED and (self.noticed_s is None or self.noticed_s > MAX_NOTICE_S)

    def see(self, sign: str, at: float) -> None:
        """A sign that it was noticed; only the earliest counts."""
        after_s = at - self.at
        if after_s >= 0 and (self.noticed_s is None or after_s < self.noticed_s):
            self.noticed_s, self.sign = after_s, sign

    def follow(self, answers: Sequence[Answer]) -> None:
        """Find its jobs among the answers. A job that was running when its process was killed, and whose answer says that
        it was drawn again, was noticed at the latest when it was answered."""
        found = [
            answer for answer in answers if answer.prompt_ids & self.running and answer.ended_at >= self.at
        ]
        if found:
            self.answered_s = max(answer.ended_at for answer in found) - self.at
        for answer in found:
            if answer.is_redrawn:
                self.see("job drawn again", answer.ended_at)


def schedule(kinds: Sequence[Kind], times: int) -> Iterator[tuple[Kind, int]]:
    """Each kind in turn, `times` times, with the number of its turn from 0."""
    for turn, kind in itertools.product(range(times), kinds):
        yield kind, turn


@dataclass
class Summary:
    """The kills of one kind."""

    kind: Kind
    kills: list[Kill] = field(default_factory=list)

    def row(self) -> list[str]:
        noticed = [kill.noticed_s for kill in self.kills if kill.noticed_s is not None]
        answered = [kill.answered_s for kill in self.kills if kill.answered_s is not None]
        recovered = [kill.recovered_s for kill in self.kills if kill.recovered_s is not None]
        in_render = sum(bool(kill.running) for kill in self.kills)
        return [
            self.kind.value,
            str(len(self.kills)),
            str(in_render),
            _spread(noticed),
            _spread(answered),
            _spread(recovered),
            str(sum(kill.is_late for kill in self.kills)) if self.kind in MUST_BE_NOTICED else "",
        ]


HEADINGS = (
    "killed",
    "times",
    "in a render",
    "noticed after",
    "its job answered after",
    "all ready after",
    "late",
)


def summaries(kills: Sequence[Kill]) -> list[Summary]:
    """In the order of the kinds."""
    return [Summary(kind, [kill for kill in kills if kill.kind == kind]) for kind in Kind]


def _spread(values: Sequence[float]) -> str:
    """Median and maximum."""
    return f"{statistics.median(values):.1f} / {max(values):.1f} s" if values else "-"
