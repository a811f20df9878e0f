"""Pictures per second of one front end with 1, 2, 4 and 8 hosts, compared with as many times those of one host."""

from __future__ import annotations

import statistics
from typing import Any

from bench.clients import GatewayRoute
from bench.hosts.cluster import Cluster, HostOptions
from bench.hosts.programs import MODELS
from bench.hosts.tables import table
from bench.load import LoadGenerator, LoadResult
from bench.processes import child_pids, cpu_s, machine_cpu_s
from bench.testbed import new_seeds

RENDER_MS = 200.0
COUNTS, QUICK_COUNTS = (1, 2, 4, 8), (1, 2)
CLIENTS_PER_HOST = 4
ROUNDS, QUICK_ROUNDS = 3, 1
PICTURES_PER_HOST, QUICK_PICTURES_PER_HOST = 30, 8
SIZE = 64
BUSY = 0.9
"""From this share of the CPU time on, the machine is the limit and not the program"""
MIN_EFFICIENCY = 0.95


def measure_throughput(options: HostOptions) -> list[dict[str, Any]]:
    """An entry for each number of hosts. Hosts are added while the front end runs."""
    entries: list[dict[str, Any]] = []
    seeds = new_seeds()
    with Cluster(options, name="throughput") as cluster, LoadGenerator() as load:
        cluster.start_all(0, render_ms=RENDER_MS)
        for count in QUICK_COUNTS if options.quick else COUNTS:
            for _ in range(count - len(cluster.hosts)):
                cluster.new_host(render_ms=RENDER_MS).start()
            cluster.wait_ready()
            clients = CLIENTS_PER_HOST * count
            route = GatewayRoute(cluster.fronts[0].url, {"model": MODELS[0]}, SIZE)
            load.run(route, clients, [next(seeds) for _ in range(2 * clients)])  # every host loads the model
            pictures = (QUICK_PICTURES_PER_HOST if options.quick else PICTURES_PER_HOST) * count
            rounds = [
                _run(cluster, load, route, clients, [next(seeds) for _ in range(pictures)])
                for _ in range(QUICK_ROUNDS if options.quick else ROUNDS)
            ]
            entries.append({"hosts": count, "clients": clients, **_median(rounds)})
    alone = entries[0]["pictures_per_s"]
    return [{**entry, "efficiency": entry["pictures_per_s"] / (entry["hosts"] * alone)} for entry in entries]


def _run(
    cluster: Cluster, load: LoadGenerator, route: GatewayRoute, clients: int, seeds: list[int]
) -> dict[str, Any]:
    before, machine_before = _cpu_by_program(cluster), machine_cpu_s()
    result: LoadResult = load.run(route, clients, seeds)
    after, machine_after = _cpu_by_program(cluster), machine_cpu_s()
    worked_s, all_s = (late - early for late, early in zip(machine_after, machine_before, strict=True))
    count = len(result.latencies_s)
    used = {name: (after[name] - before[name]) / count for name in after}
    return {
        "pictures_per_s": result.pictures_per_s,
        "p95_s": statistics.quantiles(result.latencies_s, n=20)[-1],
        "busy": worked_s / all_s if all_s else 0.0,
        "cpu_s_per_picture": {**used, "clients": result.client_cpu_s / count},
    }


def _cpu_by_program(cluster: Cluster) -> dict[str, float]:
    """Seconds of CPU time so far, of each program with its children."""
    engines = [host.engine.pid for host in cluster.hosts if host.engine.pid is not None]
    return {
        "front end": sum(_tree_cpu_s(front.pid) for front in cluster.fronts),
        "redis": _tree_cpu_s(cluster.redis.pid),
        "hosts": sum(_tree_cpu_s(host.pid) for host in cluster.hosts),
        "engines": sum(_tree_cpu_s(pid) for pid in engines),
    }


def _tree_cpu_s(pid: int) -> float:
    return cpu_s(pid) + sum(_tree_cpu_s(child) for child in child_pids(pid))


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{
            name: statistics.median(run[name] for run in runs) for name in ("pictures_per_s", "p95_s", "busy")
        },
        "cpu_s_per_picture": {
            name: statistics.median(run["cpu_s_per_picture"][name] for run in runs)
            for name in runs[0]["cpu_s_per_picture"]
        },
        "runs": runs,
    }


def limit_of(entry: dict[str, Any]) -> str:
    """What keeps this entry from more: the machine's CPU and who used most of it, or the engines."""
    costs: dict[str, float] = entry["cpu_s_per_picture"]
    if entry["busy"] >= BUSY:
        largest = max(costs, key=lambda name: costs[name])
        return f"the CPU ({largest}: {costs[largest] / sum(costs.values()):.0%} of what a picture costs)"
    if entry["efficiency"] >= MIN_EFFICIENCY:
        return "the engines"
    return "waiting: neither the CPU nor the engines"


def is_good(entries: list[dict[str, Any]]) -> bool:
    """Whether nothing but the machine's CPU limits."""
    return all(not limit_of(entry).startswith("waiting") for entry in entries)


def report(entries: list[dict[str, Any]]) -> str:
    headings = [
        "hosts",
        "clients",
        "pictures/s",
        "efficiency",
        "p95",
        "CPU busy",
        "CPU ms per picture",
        "limit",
    ]
    rows = [
        [
            str(entry["hosts"]),
            str(entry["clients"]),
            f"{entry['pictures_per_s']:.1f}",
            f"{entry['efficiency']:.2f}",
            f"{entry['p95_s'] * 1000:.0f} ms",
            f"{entry['busy']:.0%}",
            ", ".join(f"{name} {cost * 1000:.0f}" for name, cost in entry["cpu_s_per_picture"].items()),
            limit_of(entry),
        ]
        for entry in entries
    ]
    return f"{SIZE}x{SIZE}, render {RENDER_MS:.0f} ms\n" + table(headings, rows)
