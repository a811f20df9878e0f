"""Which waiting jobs go to which hosts now. Pure: the order is that of the arbiter's fair queue, the choice that of the
engines' selection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arbiter import Claim, Turns, queue_order
from cluster.host_facts import HostFacts
from engines import Candidate, Choice, Costs, JobCosts, Refusal, Wanted, choose, forecast, keeps_loaded

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
            str(document["model"]),
            str(document["flow"]),
            str(document["front"]),
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
        return cls(WaitingJob.read(id, document), str(document["host"]), float(document["at"]))


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
    sent: list[AssignedJob] = []
    # Those that wait for a host that is busy count there, so that the ones behind them see it.
    reserved: list[AssignedJob] = []
    free = {
        name
        for name, host in situation.hosts.items()
        if host.can_draw and _may_get(host, situation, need_bytes)
    }
    only_here = _only_here(situation)
    for job in in_order(situation.waiting, situation.assigned, situation.turns)[:_MAX_LOOKED_AT]:
        if not free:
            break
        virtual = replace(situation, assigned=(*situation.assigned, *sent, *reserved))
        choice = choose_host(job, virtual, need_bytes, only_here)
        if choice is None:
            continue
        placed = AssignedJob(job, choice.name, situation.now)
        if choice.name in free:
            sent.append(placed)
            later = replace(situation, assigned=(*situation.assigned, *sent))
            if not _may_get(situation.hosts[choice.name], later, need_bytes):
                free.discard(choice.name)
        else:
            reserved.append(placed)
    return sent


def choose_host(
    job: WaitingJob,
    situation: Situation,
    need_bytes: Callable[[str], int],
    only_here: Mapping[str, int] | None = None,
) -> Choice | None:
    """The host that would draw it soonest; None if none can."""
    uses = sum((Counter(host.recent) for host in situation.hosts.values()), Counter[str]())
    shares = {model: count / uses.total() for model, count in uses.items()}
    wanted = Wanted(job.model, need_bytes(job.model), shares.get(job.model, 0.0))
    found = [
        _candidate(host, job, situation, need_bytes, shares, (only_here or {}).get(host.name, 0))
        for host in situation.hosts.values()
    ]
    return choose(wanted, found)


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


def _candidate(
    host: HostFacts,
    job: WaitingJob,
    situation: Situation,
    need_bytes: Callable[[str], int],
    shares: Mapping[str, float],
    only_here: int,
) -> Candidate:
    costs = _costs(host, situation, need_bytes)
    jobs = list(_jobs_of(host.name, situation))
    then = forecast(
        [each.job.model for each in jobs],
        costs,
        host.loaded,
        host.memory_bytes,
        running_s=max(0.0, situation.now - jobs[0].at) if jobs else None,
    )
    is_warm = job.model in then.loaded
    kept = keeps_loaded((job.model, *then.loaded), host.memory_bytes, need_bytes)
    displaced = [] if is_warm else [model for model in then.loaded if model not in kept]
    return Candidate(
        host.name,
        refusal_of(host, job),
        wait_s=0.0 if len(jobs) < host.slots else then.wait_s / host.slots,
        is_warm=is_warm,
        load_s=costs.load_s(job.model),
        render_s=costs.render_s(job.model),
        jobs=len(jobs),
        memory_bytes=host.memory_bytes,
        displaced=", ".join(displaced),
        displaced_share=min(
            1.0, sum(shares.get(model, 0.0) / _holders(model, situation) for model in displaced)
        ),
        only_here=only_here,
    )


def _holders(model: str, situation: Situation) -> int:
    """On how many hosts it is loaded"""
    return max(1, sum(model in host.loaded for host in situation.hosts.values()))


def _may_get(host: HostFacts, situation: Situation, need_bytes: Callable[[str], int]) -> bool:
    """Whether it may get another job now: one engine is free, or will be soon."""
    jobs = list(_jobs_of(host.name, situation))
    if len(jobs) < host.slots:
        return True
    if len(jobs) >= 2 * host.slots:
        return False
    costs = _costs(host, situation, need_bytes)
    running_s = max(0.0, situation.now - jobs[0].at)
    models = [each.job.model for each in jobs]
    then = forecast(models, costs, host.loaded, host.memory_bytes, running_s=running_s)
    return then.wait_s / host.slots <= SOON_S


def _jobs_of(name: str, situation: Situation) -> Iterator[AssignedJob]:
    """The one that was sent first is the one that runs."""
    return iter(sorted((each for each in situation.assigned if each.host == name), key=lambda each: each.at))


def _costs(host: HostFacts, situation: Situation, need_bytes: Callable[[str], int]) -> JobCosts:
    others: tuple[tuple[float, Costs], ...] = tuple(
        (1.0, each.costs) for each in situation.hosts.values() if each is not host
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
