"""What streams cost: how much later a step is reported through the gateway than by the engine itself, and how much
memory large pictures need."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from bench.clients import PROMPT, TIMEOUT_S, DirectRoute, GatewayRoute, session
from bench.processes import peak_memory_mb, reset_peak_memory
from bench.summary import summarize
from bench.testbed import Testbed

SIZE, SAMPLED_MODEL = 64, "bench"
STEPS, QUICK_STEPS = 40, 5
LARGE, QUICK_LARGE = 10, 2
"""Pictures of 2048x2048 in one response"""


def measure_streams(testbed: Testbed) -> dict[str, Any]:
    """Times in seconds; the peak memory of a large response also as a multiple of the size of its base64. Empty if the
    engine has no checkpoint, because without a sampler there are no steps."""
    if not testbed.engine.checkpoint:
        return {}
    direct, gateway = _first_steps(testbed, QUICK_STEPS if testbed.options.quick else STEPS)
    results: dict[str, Any] = {
        "direct_s": direct,
        "gateway_s": gateway,
        "added_s": gateway["median"] - direct["median"],
        "ratio": gateway["median"] / direct["median"],
    }
    if testbed.engine.is_sketch:
        count = QUICK_LARGE if testbed.options.quick else LARGE
        results["large"] = {
            name: _large(testbed, count, stream) for name, stream in (("response", False), ("stream", True))
        }
    return results


def _first_steps(testbed: Testbed, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    graph = testbed.sources.graph(SAMPLED_MODEL, SIZE)
    routes = (
        DirectRoute(testbed.engine.url, graph, SIZE),
        GatewayRoute(testbed.server.url, {"model": SAMPLED_MODEL}, SIZE),
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(route.open())) for route in routes]
        for client in clients:
            client.first_step_s(next(testbed.seeds))
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(count):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                times[side].append(clients[side].first_step_s(next(testbed.seeds)))
    return summarize(times[0]), summarize(times[1])


def _large(testbed: Testbed, count: int, stream: bool) -> dict[str, float]:
    """By how much the memory of the worker that served the request grew, and the size of the pictures in base64."""
    workers = testbed.server.workers
    before = {pid: reset_peak_memory(pid) for pid in workers}
    body = {
        "prompt": PROMPT,
        "model": SAMPLED_MODEL,
        "size": "2048x2048",
        "n": count,
        "response_format": "b64_json",
        "stream": stream,
    }
    size = 0
    with session() as http, http.post(
        f"{testbed.server.url}/v1/images/generations", data=json.dumps(body), stream=True, timeout=TIMEOUT_S,
        headers={"Content-Type": "application/json"},
    ) as response:  # fmt: skip
        response.raise_for_status()
        for chunk in response.iter_content(65536):
            size += len(chunk)
    grown = max(peak_memory_mb(pid) - before[pid] for pid in workers)
    return {"encoded_mb": size / 1_000_000, "grown_mb": grown, "times": grown / (size / 1_000_000)}
