"""One picture after another: directly by a front end with an engine of its own, and through Celery by a host's."""

from __future__ import annotations

import contextlib
import random
from typing import Any

from bench.clients import GatewayRoute, check_all_new, fingerprint
from bench.hosts.cluster import Cluster, HostOptions
from bench.hosts.programs import MODELS, Engine, copy_sources
from bench.hosts.tables import target
from bench.server import Server
from bench.summary import summarize
from bench.testbed import new_seeds

RENDER_MS = 200.0
SIZE = 512
ROUNDS, QUICK_ROUNDS, WARM_UP_ROUNDS = 60, 8, 3
MAX_ADDED_S = 0.025
DIRECT, CELERY = "direct", "through Celery"


def measure_latency(options: HostOptions) -> dict[str, Any]:
    """Seconds of each route, and the difference of the medians. Both draw once in each round, in random order, so that
    other load on the machine affects both."""
    with contextlib.ExitStack() as running:
        cluster = running.enter_context(Cluster(options, name="latency"))
        cluster.start_all(1, render_ms=RENDER_MS)
        engine = Engine(RENDER_MS, cluster.port())
        running.callback(engine.stop)
        engine.start()
        folder = cluster.folder / "direct"
        folder.mkdir(exist_ok=True)
        sources = copy_sources(folder)
        direct = running.enter_context(
            Server(engine_url=engine.url, catalogue=sources.catalogue, templates=sources.templates)
        )
        urls = {DIRECT: direct.url, CELERY: cluster.fronts[0].url}
        return _measure(urls, QUICK_ROUNDS if options.quick else ROUNDS)


def _measure(urls: dict[str, str], rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in urls}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    pictures: dict[str, list[int]] = {name: [] for name in urls}
    seeds = new_seeds()
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(
                contextlib.closing(GatewayRoute(url, {"model": MODELS[0]}, SIZE, name=name).open())
            )
            for name, url in urls.items()
        }
        for number in range(WARM_UP_ROUNDS + rounds):
            for name in random.sample(list(clients), len(clients)):
                drawn = clients[name].draw(next(seeds))
                pictures[name].append(fingerprint(drawn.picture))
                if number >= WARM_UP_ROUNDS:
                    times[name].append(drawn.total_s)
                    stages[name].append(dict(drawn.stages))
    for name, prints in pictures.items():
        check_all_new(name, prints)
    summaries = {name: summarize(values) for name, values in times.items()}
    return {
        "rounds": rounds,
        "routes": summaries,
        "stages": {name: _medians(values) for name, values in stages.items()},
        "added_s": summaries[CELERY]["median"] - summaries[DIRECT]["median"],
    }


def _medians(values: list[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(each) for each in values))
    return {name: summarize(each[name] for each in values)["median"] for name in sorted(names)}


def is_good(result: dict[str, Any]) -> bool:
    return bool(result["added_s"] <= MAX_ADDED_S)


def report(result: dict[str, Any]) -> str:
    """Milliseconds."""
    lines = [f"{SIZE}x{SIZE}, render {RENDER_MS:.0f} ms, {result['rounds']} pictures each, one at a time"]
    for name, summary in result["routes"].items():
        stages = ", ".join(f"{stage} {value * 1000:.1f}" for stage, value in result["stages"][name].items())
        lines.append(
            f"{name}: median {summary['median'] * 1000:.1f} ms, p95 {summary['p95'] * 1000:.1f} ms ({stages})"
        )
    added = f"{result['added_s'] * 1000:.1f} ms at the median"
    limit = f"at most {MAX_ADDED_S * 1000:.0f} ms"
    lines.append(target("Celery adds", added, limit, is_met=is_good(result)))
    return "\n".join(lines)
