"""Pictures per second on each route, for each size and number of clients."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clients import DIRECT, Route
from bench.load import LoadGenerator
from bench.processes import cpu_s
from bench.summary import summarize
from bench.testbed import CLIENTS, EngineUnderTest, Testbed, open_testbed

RENDER_MS, QUICK_RENDER_MS = 200.0, 25.0
ROUNDS, QUICK_ROUNDS = 3, 1
BUDGET_S, QUICK_BUDGET_S = 1.2, 0.2
"""About how long one route takes in one round; longer if it needs more to give each client one picture"""
MAX_ENTRY_S, QUICK_MAX_ENTRY_S = 25.0, 4.0
ALWAYS_SIZE, ALWAYS_CLIENTS = 1024, 8
"""Larger pictures or more clients are left out if they would take longer than MAX_ENTRY_S, unless the command names
numbers of clients."""


def measure_throughput(testbed: Testbed) -> list[dict[str, Any]]:
    """With the engine as it is (`render_ms` None for a real one); the sketch engine also with a simulated render, for the
    smallest pictures. An entry without `routes` was left out and has the seconds that it would take."""
    options = testbed.options
    with LoadGenerator() as load:
        render_ms = None if options.url else 0.0
        entries = [
            entry
            for size in testbed.sizes
            for entry in _measure(testbed, load, testbed.routes(size), size, render_ms)
        ]
        if not options.url:
            render_ms = QUICK_RENDER_MS if options.quick else RENDER_MS
            with open_testbed(options, render_ms=render_ms) as slow:
                size = min(slow.sizes)
                entries += _measure(slow, load, [slow.direct(size), slow.gateway(size)], size, render_ms)
    return entries


def _measure(
    testbed: Testbed, load: LoadGenerator, routes: Sequence[Route], size: int, render_ms: float | None
) -> list[dict[str, Any]]:
    one_s = _seconds_per_picture(testbed, routes[0])
    budget_s = QUICK_BUDGET_S if testbed.options.quick else BUDGET_S
    entries = []
    for clients in testbed.options.clients or CLIENTS:
        pictures = max(clients, round(budget_s / one_s))
        expected_s = pictures * one_s * _rounds(testbed) * len(routes)
        entry = {"size": size, "render_ms": render_ms, "clients": clients, "pictures": pictures}
        if not render_ms and _is_left_out(testbed, size, clients, expected_s):
            entries.append({**entry, "expected_s": expected_s})
        else:
            runs = _run_rounds(testbed, load, routes, clients, pictures)
            entries.append({**entry, "routes": _compare(runs)})
    return entries


def _rounds(testbed: Testbed) -> int:
    return QUICK_ROUNDS if testbed.options.quick else ROUNDS


def _is_left_out(testbed: Testbed, size: int, clients: int, expected_s: float) -> bool:
    may_be = (size > ALWAYS_SIZE or clients > ALWAYS_CLIENTS) and not testbed.options.clients
    return may_be and expected_s > (QUICK_MAX_ENTRY_S if testbed.options.quick else MAX_ENTRY_S)


def _seconds_per_picture(testbed: Testbed, route: Route) -> float:
    with contextlib.closing(route.open()) as client:
        client.draw(next(testbed.seeds))
        return statistics.median(client.draw(next(testbed.seeds)).total_s for _ in range(3))


@dataclass(frozen=True)
class Meter:
    """The CPU time of a gateway and its engine."""

    workers: Sequence[int]
    engine: EngineUnderTest

    def read(self) -> dict[str, float | None]:
        """Seconds so far; the engine's None if its process is not known. Raises RuntimeError if one of the workers has
        ended: its seconds would be missing."""
        if ended := [pid for pid in self.workers if not Path(f"/proc/{pid}/stat").exists()]:
            raise RuntimeError(f"the gateway's worker {ended[0]} has ended")
        engine_s = None if self.engine.pid is None else cpu_s(self.engine.pid)
        return {"gateway": sum(map(cpu_s, self.workers)), "engine": engine_s}


def _run_rounds(
    testbed: Testbed, load: LoadGenerator, routes: Sequence[Route], clients: int, pictures: int
) -> dict[str, list[dict[str, Any]]]:
    """The order is A B C, C B A, A B C. The routes of a round are compared with each other, because the load on the
    machine may change from round to round."""
    meter = Meter(testbed.server.workers, testbed.engine)
    runs: dict[str, list[dict[str, Any]]] = {route.name: [] for route in routes}
    order = list(routes)
    for _ in range(_rounds(testbed)):
        for route in order:
            seeds = [next(testbed.seeds) for _ in range(pictures)]
            runs[route.name].append(measured_run(load, route, meter, clients, seeds))
        order.reverse()
    return runs


def measured_run(
    load: LoadGenerator, route: Route, meter: Meter, clients: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """One picture for each seed: pictures per second, CPU seconds per picture by process, and the latencies."""
    before = meter.read()
    result = load.run(route, clients, seeds)
    after = meter.read()
    count = len(result.latencies_s)
    used = {
        name: None if late is None else (late - (before[name] or 0.0)) / count for name, late in after.items()
    }
    return {
        "pictures_per_s": result.pictures_per_s,
        "cpu_s_per_picture": {"client": result.client_cpu_s / count, **used},
        "latency": summarize(result.latencies_s),
    }


def _compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By route; `ratios`: to the direct client of the same round."""
    return {
        name: {
            **_summary(route_runs),
            "ratios": (ratios := _ratios(route_runs, runs[DIRECT])),
            "ratio": statistics.median(ratios),
        }
        for name, route_runs in runs.items()
    }


def _ratios(runs: list[dict[str, Any]], direct: list[dict[str, Any]]) -> list[float]:
    return [run["pictures_per_s"] / other["pictures_per_s"] for run, other in zip(runs, direct, strict=True)]


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name, value in runs[0]["cpu_s_per_picture"].items() if value is not None]
    return {
        "pictures_per_s": statistics.median(run["pictures_per_s"] for run in runs),
        "p95_s": statistics.median(run["latency"]["p95"] for run in runs),
        "cpu_s_per_picture": {
            name: statistics.median(run["cpu_s_per_picture"][name] for run in runs) for name in names
        },
        "runs": runs,
    }
