"""What became of every request of a fault run, and what that says: lost, answered twice, mixed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """A picture to draw. Seed and prompt are those of no other job of the run."""

    index: int
    seed: int
    model: str
    prompt: str


@dataclass(frozen=True)
class Answer:
    """A 200. `digest`: of the pixels. `prompt_ids`: of the jobs that drew it, or tried to. `times` on the machine's
    monotonic clock."""

    request_id: str
    digest: str
    prompt_ids: frozenset[str]
    is_redrawn: bool
    began_at: float
    ended_at: float


@dataclass(frozen=True)
class Verdict:
    """What is wrong; all empty if nothing is."""

    lost: Sequence[str]
    twice: Sequence[str]
    mixed: Sequence[str]
    not_stored: Sequence[str]
    """Answered, but not in any front end's store"""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.twice or self.mixed or self.not_stored)


@dataclass
class Ledger:
    """Filled by many threads."""

    answers: dict[int, Answer] = field(default_factory=dict)
    """By the index of the job"""
    jobs: dict[int, Job] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    given_up: dict[int, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_job(self, job: Job) -> None:
        with self._lock:
            self.jobs[job.index] = job

    def add_retry(self, reason: str) -> None:
        with self._lock:
            self.retries[reason] += 1

    def add_answer(self, job: Job, answer: Answer) -> None:
        with self._lock:
            self.answers[job.index] = answer

    def give_up(self, job: Job, reason: str) -> None:
        with self._lock:
            self.given_up[job.index] = reason

    def all_answers(self) -> list[Answer]:
        with self._lock:
            return list(self.answers.values())

    def verdict(self, stored: Mapping[str, int], expected: Mapping[int, str]) -> Verdict:
        """`stored`: how many pictures the front ends keep for each request id. `expected`: the digest of each job's pixels
        as an engine without a cluster draws them; a job that is missing there is mixed, because nothing proves it."""
        missing = [answer.request_id for answer in self.answers.values() if answer.request_id not in stored]
        return Verdict(list(self._lost()), list(self._twice(stored)), list(self._mixed(expected)), missing)

    def stored_without_name(
        self, stored: Mapping[str, int], nameless: Sequence[int | None]
    ) -> dict[str, int]:
        """Of the answers that are not `stored`, those whose picture is among the `nameless`, by its seed: request id -> 1"""
        seeds = Counter(nameless)
        found = {}
        for index, answer in self.answers.items():
            seed = self.jobs[index].seed
            if answer.request_id not in stored and seeds[seed]:
                found[answer.request_id] = 1
        return found

    def _lost(self) -> Iterator[str]:
        for index in self.jobs:
            if index not in self.answers:
                yield f"job {index}: {self.given_up.get(index, 'no answer')}"

    def _twice(self, stored: Mapping[str, int]) -> Iterator[str]:
        """A client sees one answer for each attempt by the nature of HTTP. Behind it a job whose result came twice would
        be finished twice: its request would have two pictures in the store."""
        for request_id, count in stored.items():
            if count > 1:
                yield f"request {request_id}: {count} stored pictures"

    def _mixed(self, expected: Mapping[int, str]) -> Iterator[str]:
        for index, answer in self.answers.items():
            if index not in expected:
                yield f"job {index}: not compared"
            elif answer.digest != expected[index]:
                yield f"job {index}: other pixels than those of its seed and prompt"
