"""Pictures per second with 1, 2, 4 and 8 engines behind one gateway, compared with as many times those of one engine."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from typing import Any

from bench.load import LoadGenerator
from bench.processes import cpu_s, machine_cpu_s
from bench.server import Server
from bench.testbed import EngineUnderTest, Testbed, gateway_route, new_server, open_engine

RENDER_MS, QUICK_RENDER_MS = 200.0, 100.0
COUNTS, QUICK_COUNTS = (1, 2, 4, 8), (1, 2)
CLIENTS_PER_ENGINE = 4
ROUNDS, QUICK_ROUNDS = 3, 1
RENDERS_PER_ENGINE, QUICK_RENDERS_PER_ENGINE = 30, 6
SIZE = 64


def measure_engines(testbed: Testbed) -> list[dict[str, Any]]:
    """With sketch engines only. `busy`: the share of the time in which the machine's CPUs worked, for whatever: near 1 the
    CPU is what limits, and not the gateway. `share`: of as many times the pictures of one engine."""
    options = testbed.options
    if options.url:
        return []
    counts = QUICK_COUNTS if options.quick else COUNTS
    render_ms = QUICK_RENDER_MS if options.quick else RENDER_MS
    with contextlib.ExitStack() as running, LoadGenerator() as load:
        engines = [
            running.enter_context(open_engine(options, render_ms=render_ms)) for _ in range(max(counts))
        ]
        entries = [_measure(testbed, load, engines[:count], render_ms) for count in counts]
    alone = entries[0]["pictures_per_s"]
    return [{**entry, "share": entry["pictures_per_s"] / (entry["engines"] * alone)} for entry in entries]


def _measure(
    testbed: Testbed, load: LoadGenerator, engines: Sequence[EngineUnderTest], render_ms: float
) -> dict[str, Any]:
    listed = [{"name": f"e{index}", "url": engine.url} for index, engine in enumerate(engines)]
    settings = {"EASEL_ENGINE_URL": "", "EASEL_ENGINES": json.dumps(listed)}
    renders = QUICK_RENDERS_PER_ENGINE if testbed.options.quick else RENDERS_PER_ENGINE
    clients = CLIENTS_PER_ENGINE * len(engines)
    with new_server(engines[0], testbed.sources, settings=settings) as server:
        route = gateway_route(server.url, engines[0], SIZE)
        load.run(route, clients, [next(testbed.seeds) for _ in range(2 * clients)])  # the costs are measured
        rounds = QUICK_ROUNDS if testbed.options.quick else ROUNDS
        runs = [_run(testbed, load, server, engines, clients, renders) for _ in range(rounds)]
    return {
        "engines": len(engines),
        "render_ms": render_ms,
        "clients": clients,
        "pictures_per_s": statistics.median(run["pictures_per_s"] for run in runs),
        "busy": statistics.median(run["busy"] for run in runs),
        "runs": runs,
    }


def _run(
    testbed: Testbed,
    load: LoadGenerator,
    server: Server,
    engines: Sequence[EngineUnderTest],
    clients: int,
    renders: int,
) -> dict[str, Any]:
    seeds = [next(testbed.seeds) for _ in range(renders * len(engines))]
    processes = [*server.workers, *(engine.pid for engine in engines if engine.pid is not None)]
    before, machine_before = sum(map(cpu_s, processes)), machine_cpu_s()
    result = load.run(gateway_route(server.url, engines[0], SIZE), clients, seeds)
    used_s = sum(map(cpu_s, processes)) - before + result.client_cpu_s
    worked_s, all_s = (after - early for after, early in zip(machine_cpu_s(), machine_before, strict=True))
    return {
        "pictures_per_s": result.pictures_per_s,
        "cpu_s_per_picture": used_s / len(result.latencies_s),
        "busy": worked_s / all_s if all_s else 0.0,
        "p95_s": statistics.quantiles(result.latencies_s, n=20)[-1],
    }
