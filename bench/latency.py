"""One request after the other: what the gateway adds to one picture, and where that goes."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from bench.clients import Client, Taken
from bench.figures import spread
from bench.world import World

ROUNDS, QUICK_ROUNDS, WARM_UP, FEWEST = 300, 20, 5, 5
BUDGET_S = 30.0
"""A slow engine gets fewer rounds."""


def measure_latency(world: World) -> dict[str, Any]:
    """The ways in turn, A B C B C A C A B …, so that whatever else the machine does hits them all alike."""
    ways = [world.direct, world.gateway(), world.gateway(as_url=True)]
    rounds = QUICK_ROUNDS if world.options.quick else ROUNDS
    with contextlib.ExitStack() as stack:
        clients = {way.name: stack.enter_context(contextlib.closing(way.open())) for way in ways}
        _take(clients, world, WARM_UP)
        taken = _take(clients, world, rounds)
    direct, b64, url = (taken[way.name] for way in ways)
    return {
        "direct": spread(one.total_s for one in direct),
        "b64_json": _beside(b64, direct),
        "url_and_get": _beside(url, direct),
        "stages": {"direct": _direct_stages(direct), "gateway": _gateway_stages(b64)},
    }


def _take(clients: dict[str, Client], world: World, rounds: int) -> dict[str, list[Taken]]:
    taken: dict[str, list[Taken]] = {name: [] for name in clients}
    names, until = list(clients), time.monotonic() + BUDGET_S
    for count in range(rounds):
        if count >= FEWEST and time.monotonic() > until:
            break
        for name in names:
            taken[name].append(clients[name].picture(next(world.seeds)))
        names.append(names.pop(0))
    return taken


def _beside(ours: list[Taken], direct: list[Taken]) -> dict[str, Any]:
    told, plain = spread(one.total_s for one in ours), spread(one.total_s for one in direct)
    told["added_s"] = told["median"] - plain["median"]
    told["ratio"] = told["median"] / plain["median"]
    return told


def _direct_stages(taken: list[Taken]) -> dict[str, float]:
    names = ("submit_s", "engine_s", "fetch_s")
    stages = {name: _median([one.stages[name] for one in taken]) for name in names}
    return {**stages, "around_s": _median([one.total_s - one.stages["engine_s"] for one in taken])}


def _gateway_stages(taken: list[Taken]) -> dict[str, float]:
    """Medians. `submit_s` is what the gateway's own clock has left: fitting the graph and POST /prompt; `http_s` is
    what this client has left: HTTP, reading the request, writing the answer, base64; `around_s` is all but the
    engine's work: where pictures take unevenly long, only this can be compared."""
    names = ("compile_s", "queued_s", "run_s", "fetch_s", "finish_s")
    stages = {name: _median([one.stages[name] for one in taken]) for name in names}
    at_work = [one.stages["queued_s"] + one.stages["run_s"] for one in taken]
    stages["engine_s"] = _median(at_work)
    stages["around_s"] = _median([one.total_s - work for one, work in zip(taken, at_work, strict=True)])
    within = [one.stages["total_s"] - sum(one.stages[name] for name in names) for one in taken]
    stages["submit_s"] = _median(within)
    stages["http_s"] = _median([one.total_s - one.stages["total_s"] for one in taken])
    return stages


def _median(values: list[float]) -> float:
    median: float = spread(values)["median"]
    return median
