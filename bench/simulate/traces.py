"""Traces of requests: when each job comes and which model it wants. The same seed gives the same trace."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

SIZES_GB = (6.9, 17.2, 4.3, 20.7, 11.6, 8.4, 16.1, 2.1, 12.5, 9.7)
"""The files of ten models of catalogue.yaml, in this order again for the next ten models of a trace: SDXL, FLUX.1 fp8,
Stable Diffusion 1.5, Z-Image, SD 3.5, Z-Image int8, FLUX.2 klein, Stable Diffusion 1.5 fp16, klein fp8, LongCat"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model and the memory that it takes, which is the size of its files."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """One picture: when it is asked for (s), of which model, and how long it takes with the model loaded (s)."""

    number: int
    at: float
    model: Model
    render_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """How many jobs come, how many in a second on average, and how long a render takes on average (s)."""

    jobs: int
    per_s: float
    render_s: float


Trace = Callable[[Demand, random.Random], Iterator[tuple[float, int]]]


def models(count: int) -> list[Model]:
    sizes = itertools.cycle(SIZES_GB)
    return [Model(f"m{number:02d}", int(next(sizes) * 1e9)) for number in range(count)]


def make(name: str, demand: Demand, seed: int) -> list[Job]:
    """The jobs of a trace, in the order in which they come. Renders differ by up to 30 %."""
    chance = random.Random(f"{name} {seed}")
    count, trace = TRACES[name]
    catalogue = models(count)
    return [
        Job(number, at, catalogue[model], demand.render_s * chance.uniform(0.7, 1.3))
        for number, (at, model) in enumerate(trace(demand, chance))
    ]


def _poisson_times(demand: Demand, chance: random.Random) -> Iterator[float]:
    at = 0.0
    for _ in range(demand.jobs):
        at += chance.expovariate(demand.per_s)
        yield at


def _weighted(weights: Sequence[float]) -> Trace:
    def trace(demand: Demand, chance: random.Random) -> Iterator[tuple[float, int]]:
        cumulated = list(itertools.accumulate(weights))
        for at in _poisson_times(demand, chance):
            yield at, chance.choices(range(len(weights)), cum_weights=cumulated)[0]

    return trace


def _bursts(demand: Demand, chance: random.Random) -> Iterator[tuple[float, int]]:
    """Twenty jobs of one model at once, as a client that draws a series; the average demand is the same."""
    at, number = 0.0, 0
    while number < demand.jobs:
        at += chance.expovariate(demand.per_s / BURST)
        model = chance.randrange(10)
        for _ in range(min(BURST, demand.jobs - number)):
            yield at, model
            number += 1


BURST = 20
ZIPF = [1 / (rank + 1) ** 1.1 for rank in range(40)]
TRACES: Mapping[str, tuple[int, Trace]] = {
    "poisson": (10, _weighted([1.0] * 10)),
    "bursts": (10, _bursts),
    "one-model": (10, _weighted([90.0, *[10 / 9] * 9])),
    "long-tail": (200, _weighted([30.0, 15.0, 5.0, *[50 / 197] * 197])),
    "zipf": (40, _weighted(ZIPF)),
}
"""name -> how many models, and how they come"""
