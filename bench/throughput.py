"""Pictures per second through the gateway and directly, with 1, 8 and 32 clients."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from typing import Any

from bench.clients import Route
from bench.load import LoadGenerator
from bench.processes import cpu_s
from bench.summary import summarize
from bench.testbed import Testbed, open_testbed

CLIENTS = (1, 8, 32)
RENDER_MS, QUICK_RENDER_MS = 200.0, 25.0
ROUNDS, QUICK_ROUNDS = 3, 1
BUDGET_S, QUICK_BUDGET_S = 2.5, 0.2
"""About how long one route takes in one round; longer if it needs more to give each client one picture"""


def measure_throughput(testbed: Testbed) -> list[dict[str, Any]]:
    """With the engine as it is (`render_ms` None for a real one); the sketch engine also with a simulated render."""
    with LoadGenerator() as load:
        entries = _measure(testbed, load, None if testbed.options.url else 0.0)
        if not testbed.options.url:
            render_ms = QUICK_RENDER_MS if testbed.options.quick else RENDER_MS
            with open_testbed(testbed.options, render_ms=render_ms) as slow:
                entries += _measure(slow, load, render_ms)
    return entries


def _measure(testbed: Testbed, load: LoadGenerator, render_ms: float | None) -> list[dict[str, Any]]:
    one_s = _seconds_per_picture(testbed)
    budget_s = QUICK_BUDGET_S if testbed.options.quick else BUDGET_S
    entries = []
    for clients in CLIENTS:
        pictures = max(clients, round(budget_s / one_s))
        entries.append({"render_ms": render_ms, **_compare(testbed, load, clients, pictures)})
    return entries


def _seconds_per_picture(testbed: Testbed) -> float:
    with contextlib.closing(testbed.direct.open()) as client:
        client.draw(next(testbed.seeds))
        return statistics.median(client.draw(next(testbed.seeds)).total_s for _ in range(5))


def _compare(testbed: Testbed, load: LoadGenerator, clients: int, pictures: int) -> dict[str, Any]:
    """The order is A B, B A, A B. The two routes of a round are compared with each other, because the load on the
    machine may change from round to round."""
    routes = {"direct": testbed.direct, "gateway": testbed.gateway()}
    rounds = QUICK_ROUNDS if testbed.options.quick else ROUNDS
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in routes}
    names = list(routes)
    for _ in range(rounds):
        for name in names:
            runs[name].append(_run(testbed, load, routes[name], clients, pictures))
        names.reverse()
    pairs = zip(runs["gateway"], runs["direct"], strict=True)
    ratios = [gateway["pictures_per_s"] / direct["pictures_per_s"] for gateway, direct in pairs]
    return {
        "clients": clients,
        "pictures": pictures,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **{name: _summary(route_runs) for name, route_runs in runs.items()},
    }


def _run(testbed: Testbed, load: LoadGenerator, route: Route, clients: int, pictures: int) -> dict[str, Any]:
    engine = [testbed.engine_pid] if testbed.engine_pid else []
    before = [sum(map(cpu_s, pids)) for pids in (testbed.server.workers, engine)]
    result = load.run(route, clients, [next(testbed.seeds) for _ in range(pictures)])
    after = [sum(map(cpu_s, pids)) for pids in (testbed.server.workers, engine)]
    gateway_s, engine_s = (late - early for early, late in zip(before, after, strict=True))
    count = len(result.latencies_s)
    return {
        "pictures_per_s": result.pictures_per_s,
        "cpu_s_per_picture": {
            "client": result.client_cpu_s / count,
            "gateway": gateway_s / count,
            "engine": engine_s / count if engine else None,
        },
        "latency": summarize(result.latencies_s),
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    cpu: list[Mapping[str, float | None]] = [run["cpu_s_per_picture"] for run in runs]
    known = [name for name in ("client", "gateway", "engine") if cpu[0][name] is not None]
    return {
        "pictures_per_s": statistics.median(run["pictures_per_s"] for run in runs),
        "cpu_s_per_picture": {name: statistics.median(times[name] or 0.0 for times in cpu) for name in known},
        "runs": runs,
    }
