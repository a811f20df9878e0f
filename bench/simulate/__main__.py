"""`python -m bench.simulate`: which engine draws which job, simulated, beside FIFO and round robin."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.simulate import page
from bench.simulate.costs import Costs
from bench.simulate.plot import svg
from bench.simulate.report import Result, table, worse
from bench.simulate.simulation import PLACEMENTS, simulate
from bench.simulate.traces import TRACES, Demand, make

ENGINES = (1, 2, 4, 8, 16)
JOBS = 1000
DEMAND = 0.2


def simulate_all(
    traces: Sequence[str],
    engines: Sequence[int],
    *,
    seed: int,
    jobs: int = JOBS,
    demand: float = DEMAND,
    costs: Costs | None = None,
) -> list[Result]:
    """Each trace on each number of engines, in each way. `demand`: the share of the time in which the engines would draw,
    if no model had to be loaded. There are at least 10 jobs for each engine."""
    costs = costs or Costs()
    results = []
    for trace in traces:
        for count in engines:
            asked = Demand(max(jobs, 10 * count), demand * count / costs.render_s, costs.render_s)
            trace_jobs = make(trace, asked, seed)
            results += [
                Result(trace, count, placement, simulate(trace_jobs, count, placement, costs))
                for placement in PLACEMENTS
            ]
    return results


def simulate_condition(condition: page.Condition, seed: int) -> list[Result]:
    """All traces under one of the page's conditions."""
    return simulate_all(
        list(TRACES), (page.ENGINES,), seed=seed, demand=condition.demand, costs=condition.costs
    )


def main() -> None:
    options = _options()
    costs = replace(
        Costs(),
        render_s=options.render,
        read_bytes_per_s=options.read_gb * 1e9,
        memory_bytes=int(options.memory_gb * 1e9),
        is_shared=options.llms,
    )
    began = time.monotonic()
    results = simulate_all(
        options.trace or list(TRACES),
        options.engines,
        seed=options.seed,
        jobs=options.jobs,
        demand=options.demand,
        costs=costs,
    )
    print("\n".join(table(results)))
    print("\nWhere Easel's number is higher than that of the better other way, by more than a tenth:")
    print("\n".join(worse(results) or ["nowhere"]))
    print(f"\n{time.monotonic() - began:.0f} s")
    if options.plot:
        options.plot.write_text(svg(results), "utf-8")
    if options.write:
        page.write(results, {each.title: simulate_condition(each, options.seed) for each in page.CONDITIONS})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    costs = Costs()
    parser.add_argument("--engines", type=_counts, default=ENGINES, help="as 1,2,4,8; up to 1000 and more")
    parser.add_argument("--trace", choices=list(TRACES), action="append", help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=_positive(int), default=JOBS, help="at least 10 for each engine")
    parser.add_argument(
        "--demand", type=_positive(float), default=DEMAND, help="share of the time for renders"
    )
    parser.add_argument("--render", type=_positive(float), default=costs.render_s, help="seconds of a render")
    parser.add_argument("--read-gb", type=_positive(float), default=costs.read_bytes_per_s / 1e9, help="GB/s")
    parser.add_argument(
        "--memory-gb", type=_positive(float), default=costs.memory_bytes / 1e9, help="of a GPU"
    )
    parser.add_argument("--llms", action="store_true", help="LLMs share every GPU, and have it after 5 s")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md and its plot")
    options = parser.parse_args()
    names = ("trace", "engines", "seed", "jobs", "demand", "render", "read_gb", "memory_gb", "llms")
    if options.write and any(getattr(options, name) != parser.get_default(name) for name in names):
        parser.error("--write is without other options: the page describes the default ones")
    return options


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(_positive(int)(part) for part in text.split(","))
    return tuple(int(count) for count in counts)


def _positive(kind: type[int] | type[float]):  # type: ignore[no-untyped-def]
    def positive(text: str) -> float:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    return positive


if __name__ == "__main__":
    main()
