"""The simulation: jobs come, engines draw them, in simulated time. Pure: the same jobs give the same result."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.simulate.costs import Costs
from bench.simulate.engines import Engine
from bench.simulate.placement import Easel
from bench.simulate.rivals import Fifo, Placement, RoundRobin
from bench.simulate.traces import Job


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened. `waits_s`: from the request of each job until it is drawn (queue, switchover and load), in the order of
    the jobs. `utilisation`: the share of the time of all engines in which they drew."""

    waits_s: tuple[float, ...]
    loads: int
    utilisation: float
    length_s: float
    moved: int = 0

    def wait_s(self, share: float) -> float:
        """The wait that so large a share of the jobs did not exceed."""
        ordered = sorted(self.waits_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def loads_per_100(self) -> float:
        return 100 * self.loads / len(self.waits_s)


_JOB_ENDS, _JOB_COMES, _LOOK = range(3)
"""What happens at one moment, in this order: an engine that ends a job is free for one that comes"""
PLACEMENTS: Mapping[str, Callable[[Sequence[Engine], Costs], Placement]] = {
    "easel": lambda engines, costs: Easel(engines, costs.render_s),
    "fifo": lambda engines, costs: Fifo(),
    "round robin": lambda engines, costs: RoundRobin(engines),
}


def simulate(jobs: Sequence[Job], count: int, placement: str, costs: Costs, clients: int = 0) -> Outcome:
    """Draw `jobs` on `count` engines, placed by one of `PLACEMENTS`. `clients`: as for `run`."""
    engines = [Engine(number, costs) for number in range(count)]
    return run(jobs, engines, PLACEMENTS[placement](engines, costs), clients)


def run(jobs: Sequence[Job], engines: Sequence[Engine], placement: Placement, clients: int = 0) -> Outcome:
    """Draw `jobs` on `engines`, until the last one has ended. `clients`: so many clients send the jobs in their order, each
    the next one when its last one has ended; 0: the jobs come at their own times."""
    waits = [0.0] * len(jobs)
    asked_at = [0.0 if clients else job.at for job in jobs]
    events = [(asked_at[job.number], _JOB_COMES, job.number) for job in jobs[: clients or len(jobs)]]
    later = iter(jobs[len(events) :])
    if placement.looks_every_s:
        events.append((placement.looks_every_s, _LOOK, 0))
    heapq.heapify(events)
    idle = dict.fromkeys(range(len(engines)))
    left, now = len(jobs), 0.0

    def begin(number: int) -> None:
        engine = engines[number]
        job = placement.next_job(engine, now)
        if job is None:
            idle[number] = None
            return
        idle.pop(number, None)
        duration_s = engine.start(job, now)
        waits[job.number] = now + duration_s - job.render_s - asked_at[job.number]
        placement.started(engine, job, now, duration_s)
        heapq.heappush(events, (now + duration_s, _JOB_ENDS, number))

    while left:
        now, kind, number = heapq.heappop(events)
        if kind == _JOB_ENDS:
            left -= 1
            engines[number].end(now)
            begin(number)
            if (following := next(later, None)) is not None:
                asked_at[following.number] = now
                heapq.heappush(events, (now, _JOB_COMES, following.number))
            continue
        if kind == _JOB_COMES:
            placement.arrived(jobs[number], now)
        else:
            placement.look_again(now)
            heapq.heappush(events, (now + placement.looks_every_s, _LOOK, 0))
        for each in list(idle):
            begin(each)
    drawn_s = sum(engine.drawn_s for engine in engines)
    loads = sum(engine.loads for engine in engines)
    moved = placement.moved if isinstance(placement, Easel) else 0
    return Outcome(tuple(waits), loads, drawn_s / (now * len(engines)), now, moved)
