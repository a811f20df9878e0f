"""One request after another: what the gateway adds to one picture, and in which stages."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from bench.clients import Client, Timing
from bench.summary import summarize
from bench.testbed import Testbed

ROUNDS, QUICK_ROUNDS, WARM_UP_ROUNDS, MIN_ROUNDS = 300, 20, 5, 5
BUDGET_S = 30.0
"""With a slow engine there are fewer rounds."""


def measure_latency(testbed: Testbed) -> dict[str, Any]:
    """The routes in rotation (A B C, B C A, C A B, …), so that other load on the machine affects all of them
    equally."""
    routes = [testbed.direct, testbed.gateway(), testbed.gateway(as_url=True)]
    rounds = QUICK_ROUNDS if testbed.options.quick else ROUNDS
    with contextlib.ExitStack() as stack:
        clients = {route.name: stack.enter_context(contextlib.closing(route.open())) for route in routes}
        _draw(clients, testbed, WARM_UP_ROUNDS)
        timings = _draw(clients, testbed, rounds)
    direct, b64, url = (timings[route.name] for route in routes)
    return {
        "direct": summarize(timing.total_s for timing in direct),
        "b64_json": _compared(b64, direct),
        "url_and_get": _compared(url, direct),
        "stages": {"direct": _direct_stages(direct), "gateway": _gateway_stages(b64)},
    }


def _draw(clients: dict[str, Client], testbed: Testbed, rounds: int) -> dict[str, list[Timing]]:
    timings: dict[str, list[Timing]] = {name: [] for name in clients}
    names, deadline = list(clients), time.monotonic() + BUDGET_S
    for count in range(rounds):
        if count >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        for name in names:
            timings[name].append(clients[name].draw(next(testbed.seeds)))
        names.append(names.pop(0))
    return timings


def _compared(gateway: list[Timing], direct: list[Timing]) -> dict[str, Any]:
    summary = summarize(timing.total_s for timing in gateway)
    direct_median = _median([timing.total_s for timing in direct])
    summary["added_s"] = summary["median"] - direct_median
    summary["ratio"] = summary["median"] / direct_median
    return summary


def _direct_stages(timings: list[Timing]) -> dict[str, float]:
    names = ("submit_s", "engine_s", "fetch_s")
    stages = {name: _median([timing.stages[name] for timing in timings]) for name in names}
    return {**stages, "around_s": _median([timing.total_s - timing.stages["engine_s"] for timing in timings])}


def _gateway_stages(timings: list[Timing]) -> dict[str, float]:
    """Medians. `submit_s` is the rest of the gateway's own time: fitting the graph and POST /prompt. `http_s` is the
    rest of the client's time: HTTP, reading the request, writing the response, base64. `around_s` is everything except
    the engine's work; it is the only comparable value if the times of the pictures vary."""
    names = ("compile_s", "queued_s", "run_s", "fetch_s", "finish_s")
    stages = {name: _median([timing.stages[name] for timing in timings]) for name in names}
    engine = [timing.stages["queued_s"] + timing.stages["run_s"] for timing in timings]
    stages["engine_s"] = _median(engine)
    stages["around_s"] = _median(
        [timing.total_s - engine_s for timing, engine_s in zip(timings, engine, strict=True)]
    )
    submit = [timing.stages["total_s"] - sum(timing.stages[name] for name in names) for timing in timings]
    stages["submit_s"] = _median(submit)
    stages["http_s"] = _median([timing.total_s - timing.stages["total_s"] for timing in timings])
    return stages


def _median(values: list[float]) -> float:
    median: float = summarize(values)["median"]
    return median
