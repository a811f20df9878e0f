"""Which waiting jobs go to which hosts now. Pure: the order is that of the arbiter's fair queue, the choice that of the
engines' selection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbiter import Claim, Turns, queue_order
from cluster.host_facts import HostFacts
from engines import (
    Candidate,
    Choice,
    Costs,
    JobCosts,
    Refusal,
    Wanted,
    choose,
    forecast,
    forecast_after,
    keeps_loaded,
)

SOON_S = 2.0
"""A host gets its next job before the one that runs has ended only if that is expected to end so soon: a job that was sent
cannot be drawn by another host that becomes free"""
_MAX_LOOKED_AT = 500
"""Waiting jobs, of those that come first"""


@dataclass(frozen=True)
class WaitingJob:
    """A job that no host has. `number`: counts jobs in the order in which they came. `flow`: stands for its key. `attempt`:
    counts the hosts that had it. `avoided`: hosts that failed with it."""

    id: str
    number: int
    model: str
    flow: str
    front: str
    attempt: int = 1
    avoided: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "model": self.model,
            "flow": self.flow,
            "front": self.front,
            "attempt": self.attempt,
            "avoided": list(self.avoided),
        }

    @classmethod
    def read(cls, id: str, document: Mapping[str, Any]) -> WaitingJob:
        """Raises KeyError, TypeError or ValueError."""
        return cls(
            id,
            int(document["number"]),
            _text(document["model"]),
            _text(document["flow"]),
            _text(document["front"]),
            int(document["attempt"]),
            tuple(map(str, document["avoided"])),
        )


@dataclass(frozen=True)
class AssignedJob:
    """A job that a host has. `at`: when it was sent (seconds of Redis' clock)."""

    job: WaitingJob
    host: str
    at: float

    def as_json(self) -> dict[str, Any]:
        return {**self.job.as_json(), "host": self.host, "at": self.at}

    @classmethod
    def read(cls, id: str, document: Mapping[str, Any]) -> AssignedJob:
        """Raises KeyError, TypeError or ValueError."""
        return cls(WaitingJob.read(id, document), str(document["host"]), finite(document["at"]))


def _text(value: Any) -> str:
    """Raises ValueError for half of a surrogate pair, with which nothing can be asked for in Redis."""
    text = str(value)
    text.encode()
    return text


def finite(value: Any) -> float:
    """Raises TypeError or ValueError for what is no number, or none with which times can be compared."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("it is not finite")
    return number


@dataclass(frozen=True)
class Situation:
    """All hosts and jobs at one moment. `now`: of Redis' clock, in seconds."""

    waiting: Sequence[WaitingJob]
    assigned: Sequence[AssignedJob]
    hosts: Mapping[str, HostFacts]
    turns: Turns
    now: float


def in_order(
    waiting: Iterable[WaitingJob], assigned: Iterable[AssignedJob], turns: Turns
) -> list[WaitingJob]:
    """The waiting jobs, fair between keys."""
    jobs = {job.id: job for job in waiting}
    claims = [
        *(Claim("ticket", job.number, "generation", True, 0, 0, job.id, job.flow) for job in jobs.values()),
        *(
            Claim("lease", each.job.number, "generation", True, 0, 0, each.job.id, each.job.flow)
            for each in assigned
        ),
    ]
    return [jobs[claim.job] for claim in queue_order(claims, "generation", turns)]


def place(situation: Situation, need_bytes: Callable[[str], int]) -> list[AssignedJob]:
    """What to send now, in this order. `need_bytes`: the GPU memory that a model needs, 0 if that is not known."""
    hosts = _Hosts(situation, need_bytes)
    free = {name for name, queue in hosts.queues.items() if queue.host.can_draw and queue.may_get_job}
    jobs = in_order(situation.waiting, situation.assigned, situation.turns)[:_MAX_LOOKED_AT]
    while jobs and all(refusal_of(situation.hosts[name], jobs[-1]) for name in free):
        jobs.pop()  # those behind the last one that can be sent change nothing
    sent = []
    for job in jobs:
        if not free:
            break
        choice = hosts.choose(job)
        if choice is None:
            continue
        queue = hosts.queues[choice.name]
        # One that waits for a host that is busy counts there, so that those behind it see it.
        queue.add(job.model)
        if choice.name in free:
            sent.append(AssignedJob(job, choice.name, situation.now))
            if not queue.may_get_job:
                free.discard(choice.name)
    return sent


def refusal_of(host: HostFacts, job: WaitingJob) -> Refusal | None:
    """Why a host cannot draw a job; None if it can."""
    if host.problem[0]:
        return Refusal(*host.problem)
    if host.is_drained:
        return Refusal("drained", "it is drained")
    if job.model not in host.models:
        return Refusal("not_listed", "it does not have the model")
    if host.name in job.avoided:
        return Refusal("failed", "it failed with this job")
    return None


class _HostQueue:
    """One host with the jobs that it has, and those that are placed there now."""

    def __init__(self, host: HostFacts, costs: JobCosts, jobs: Sequence[AssignedJob], now: float) -> None:
        self.host, self._costs = host, costs
        self.jobs = len(jobs)
        # The one that was sent first is the one that runs.
        ordered = sorted(jobs, key=lambda each: each.at)
        running_s = max(0.0, now - ordered[0].at) if ordered else None
        models = [each.job.model for each in ordered]
        self.then = forecast(models, costs, host.loaded, host.memory_bytes, running_s=running_s)

    def add(self, model: str) -> None:
        self.jobs += 1
        self.then = forecast_after(self.then, model, self._costs, self.host.memory_bytes)

    @property
    def may_get_job(self) -> bool:
        """Whether one engine is free, or will be soon."""
        slots = self.host.slots
        return self.jobs < slots or (self.jobs < 2 * slots and self.then.wait_s / slots <= SOON_S)

    @property
    def wait_s(self) -> float:
        return 0.0 if self.jobs < self.host.slots else self.then.wait_s / self.host.slots


class _Hosts:
    """All hosts while jobs are placed. What a choice needs is found once for each host and model: with hundreds of waiting
    jobs it is asked for hundreds of times."""

    def __init__(self, situation: Situation, need_bytes: Callable[[str], int]) -> None:
        hosts, self._need_bytes = situation.hosts, need_bytes
        uses = sum((Counter(host.recent) for host in hosts.values()), Counter[str]())
        self._shares = {model: count / uses.total() for model, count in uses.items()}
        self._holders = Counter(model for host in hosts.values() for model in set(host.loaded))
        self._only_here = _only_here(situation)
        self._costs = {name: _costs(host, hosts, need_bytes) for name, host in hosts.items()}
        self._times: dict[tuple[str, str], tuple[float, float]] = {}
        jobs: dict[str, list[AssignedJob]] = {name: [] for name in hosts}
        for each in situation.assigned:
            if each.host in jobs:
                jobs[each.host].append(each)
        self.queues = {
            name: _HostQueue(host, self._costs[name], jobs[name], situation.now)
            for name, host in hosts.items()
        }

    def choose(self, job: WaitingJob) -> Choice | None:
        """The host that would draw it soonest; None if none can."""
        wanted = Wanted(job.model, self._need_bytes(job.model), self._shares.get(job.model, 0.0))
        return choose(wanted, [self._candidate(queue, job) for queue in self.queues.values()])

    def _candidate(self, queue: _HostQueue, job: WaitingJob) -> Candidate:
        host, then = queue.host, queue.then
        refusal = refusal_of(host, job)
        if refusal is not None:
            return Candidate(host.name, refusal)
        is_warm = job.model in then.loaded
        displaced = [] if is_warm else self._displaced(host, job.model, then.loaded)
        load_s, render_s = self._times_of(host.name, job.model)
        return Candidate(
            host.name,
            wait_s=queue.wait_s,
            is_warm=is_warm,
            load_s=load_s,
            render_s=render_s,
            jobs=queue.jobs,
            memory_bytes=host.memory_bytes,
            displaced=", ".join(displaced),
            displaced_share=min(
                1.0,
                sum(self._shares.get(model, 0.0) / max(1, self._holders[model]) for model in displaced),
            ),
            only_here=self._only_here[host.name],
        )

    def _displaced(self, host: HostFacts, model: str, loaded: tuple[str, ...]) -> list[str]:
        kept = keeps_loaded((model, *loaded), host.memory_bytes, self._need_bytes)
        return [each for each in loaded if each not in kept]

    def _times_of(self, host: str, model: str) -> tuple[float, float]:
        found = self._times.get((host, model))
        if found is None:
            costs = self._costs[host]
            found = self._times[host, model] = costs.load_s(model), costs.render_s(model)
        return found


def _costs(host: HostFacts, hosts: Mapping[str, HostFacts], need_bytes: Callable[[str], int]) -> JobCosts:
    others: tuple[tuple[float, Costs], ...] = tuple(
        (1.0, each.costs) for each in hosts.values() if each is not host
    )
    return JobCosts(host.costs, 1.0, others, need_bytes)


def _only_here(situation: Situation) -> Counter[str]:
    """Of each host, how many waiting jobs are of models that only it can draw"""
    found: Counter[str] = Counter()
    for model, count in Counter(job.model for job in situation.waiting).items():
        able = [name for name, host in situation.hosts.items() if model in host.models]
        if len(able) == 1:
            found[able[0]] += count
    return found
