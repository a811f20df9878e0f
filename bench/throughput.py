"""Pictures a second through the gateway and directly, at 1, 8 and 32 clients."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from typing import Any

from bench.clients import Way
from bench.figures import spread
from bench.load import Load, Run
from bench.processes import cpu_s
from bench.world import World, open_world

CLIENTS = (1, 8, 32)
RENDER_MS, QUICK_RENDER_MS = 200.0, 25.0
ROUNDS, QUICK_ROUNDS = 3, 1
BUDGET_S, QUICK_BUDGET_S = 2.5, 0.2
"""About how long one way may take in one round, as far as every client gets one picture."""


def measure_throughput(world: World) -> list[dict[str, Any]]:
    """With the engine as it is (`render_ms` None for a real one); the sketch engine also with a simulated render."""
    with Load() as load:
        entries = _measure(world, load, None if world.options.url else 0.0)
        if not world.options.url:
            render_ms = QUICK_RENDER_MS if world.options.quick else RENDER_MS
            with open_world(world.options, render_ms=render_ms) as slow:
                entries += _measure(slow, load, render_ms)
    return entries


def _measure(world: World, load: Load, render_ms: float | None) -> list[dict[str, Any]]:
    one_s = _seconds_of_one(world)
    budget_s = QUICK_BUDGET_S if world.options.quick else BUDGET_S
    found = []
    for clients in CLIENTS:
        pictures = max(clients, round(budget_s / one_s))
        found.append({"render_ms": render_ms, **_at(world, load, clients, pictures)})
    return found


def _seconds_of_one(world: World) -> float:
    with contextlib.closing(world.direct.open()) as client:
        client.picture(next(world.seeds))
        return statistics.median(client.picture(next(world.seeds)).total_s for _ in range(5))


def _at(world: World, load: Load, clients: int, pictures: int) -> dict[str, Any]:
    """A B B A A B: the two of a round are compared with each other, for the next round may meet another machine."""
    ways = {"direct": world.direct, "gateway": world.gateway()}
    rounds = QUICK_ROUNDS if world.options.quick else ROUNDS
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    names = list(ways)
    for _ in range(rounds):
        for name in names:
            runs[name].append(_run(world, load, ways[name], clients, pictures))
        names.reverse()
    told = {name: _summary(each) for name, each in runs.items()}
    pairs = zip(runs["gateway"], runs["direct"], strict=True)
    ratios = [ours["pictures_per_s"] / direct["pictures_per_s"] for ours, direct in pairs]
    return {
        "clients": clients,
        "pictures": pictures,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **told,
    }


def _run(world: World, load: Load, way: Way, clients: int, pictures: int) -> dict[str, Any]:
    engine = [world.engine_pid] if world.engine_pid else []
    before = [sum(map(cpu_s, pids)) for pids in (world.server.workers, engine)]
    run: Run = load.run(way, clients, [next(world.seeds) for _ in range(pictures)])
    after = [sum(map(cpu_s, pids)) for pids in (world.server.workers, engine)]
    gateway_s, engine_s = (late - early for early, late in zip(before, after, strict=True))
    drawn = len(run.latencies_s)
    return {
        "pictures_per_s": run.pictures_per_s,
        "cpu_s_per_picture": {
            "client": run.client_cpu_s / drawn,
            "gateway": gateway_s / drawn,
            "engine": engine_s / drawn if engine else None,
        },
        "latency": spread(run.latencies_s),
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    cpu: list[Mapping[str, float | None]] = [run["cpu_s_per_picture"] for run in runs]
    known = [name for name in ("client", "gateway", "engine") if cpu[0][name] is not None]
    return {
        "pictures_per_s": statistics.median(run["pictures_per_s"] for run in runs),
        "cpu_s_per_picture": {name: statistics.median(each[name] or 0.0 for each in cpu) for name in known},
        "runs": runs,
    }
