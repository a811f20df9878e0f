"""One request after another: how long a picture of each size takes on each route, and in which stages."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any

from bench.clients import DIRECT, GATEWAY, Client, Drawn, Route, check_all_new, fingerprint
from bench.equality import compare_pixels
from bench.summary import summarize
from bench.testbed import Testbed

ROUNDS, QUICK_ROUNDS, WARM_UP_ROUNDS, MIN_ROUNDS = 300, 20, 3, 5
BUDGET_S, QUICK_BUDGET_S = 15.0, 3.0
"""For each size. With a slow engine there are fewer rounds."""


def measure_latency(testbed: Testbed) -> dict[str, Any]:
    """By size. The smallest pictures also by URL, because the difference does not depend on the size."""
    results = {}
    for size in testbed.sizes:
        by_url = [testbed.gateway(size, as_url=True)] if size == min(testbed.sizes) else []
        routes = [*testbed.routes(size), *by_url]
        pixels = compare_pixels(testbed, routes, size)
        results[str(size)] = {**_measure(testbed, routes), "pixels": pixels}
    return results


def _measure(testbed: Testbed, routes: Sequence[Route]) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        clients = {route.name: stack.enter_context(contextlib.closing(route.open())) for route in routes}
        _draw(clients, testbed, WARM_UP_ROUNDS)
        drawn = _draw(clients, testbed, QUICK_ROUNDS if testbed.options.quick else ROUNDS)
    direct = drawn[DIRECT]
    return {
        "routes": {name: _compared(pictures, direct) for name, pictures in drawn.items()},
        "stages": {"direct": _direct_stages(direct), "gateway": _gateway_stages(drawn[GATEWAY])},
    }


def _draw(clients: dict[str, Client], testbed: Testbed, rounds: int) -> dict[str, list[Drawn]]:
    """Each route once in a round, so that other load on the machine affects all of them equally. In random order, because
    the engine may still end the job of the last picture while the next one is requested: each route follows each."""
    drawn: dict[str, list[Drawn]] = {name: [] for name in clients}
    fingerprints: dict[str, list[int]] = {name: [] for name in clients}
    budget_s = QUICK_BUDGET_S if testbed.options.quick else BUDGET_S
    names, deadline = list(clients), time.monotonic() + budget_s
    for count in range(rounds):
        if count >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        for name in random.sample(names, len(names)):
            picture = clients[name].draw(next(testbed.seeds))
            drawn[name].append(Drawn(b"", picture.total_s, picture.stages))
            fingerprints[name].append(fingerprint(picture.picture))
    for name, values in fingerprints.items():
        check_all_new(name, values)
    return drawn


def _compared(drawn: list[Drawn], direct: list[Drawn]) -> dict[str, Any]:
    """`added_s` and `ratio`: compared with the direct client, of the medians."""
    summary = summarize(picture.total_s for picture in drawn)
    direct_median = _median([picture.total_s for picture in direct])
    summary["added_s"] = summary["median"] - direct_median
    summary["ratio"] = summary["median"] / direct_median
    return summary


def _direct_stages(drawn: list[Drawn]) -> dict[str, float]:
    names = ("submit_s", "engine_s", "fetch_s")
    stages = {name: _median([picture.stages[name] for picture in drawn]) for name in names}
    return {
        **stages,
        "around_s": _median([picture.total_s - picture.stages["engine_s"] for picture in drawn]),
    }


def _gateway_stages(drawn: list[Drawn]) -> dict[str, float]:
    """Medians. `submit_s` is the rest of the gateway's own time: fitting the graph and POST /prompt. `http_s` is the
    rest of the client's time: HTTP, reading the request, writing the response, base64. `around_s` is everything except
    the engine's work; it is the only comparable value if the times of the pictures vary."""
    names = ("compile_s", "queued_s", "run_s", "fetch_s", "finish_s")
    stages = {name: _median([picture.stages[name] for picture in drawn]) for name in names}
    engine = [picture.stages["queued_s"] + picture.stages["run_s"] for picture in drawn]
    stages["engine_s"] = _median(engine)
    stages["around_s"] = _median(
        [picture.total_s - engine_s for picture, engine_s in zip(drawn, engine, strict=True)]
    )
    submit = [picture.stages["total_s"] - sum(picture.stages[name] for name in names) for picture in drawn]
    stages["submit_s"] = _median(submit)
    stages["http_s"] = _median([picture.total_s - picture.stages["total_s"] for picture in drawn])
    return stages


def _median(values: list[float]) -> float:
    median: float = summarize(values)["median"]
    return median
