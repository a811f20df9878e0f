"""How soon after its start a gateway responds and draws, and how much memory it uses after a load."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from bench.clients import GatewayRoute
from bench.load import LoadGenerator
from bench.processes import memory_mb
from bench.server import Server
from bench.summary import summarize
from bench.testbed import Testbed

STARTS, QUICK_STARTS = 5, 1
PICTURES, QUICK_PICTURES = 200, 20


def measure_start(testbed: Testbed) -> dict[str, Any]:
    """Several starts, each in a new state directory. The bytecode is already compiled, because the testbed's own server
    has started before."""
    answers, pictures = [], []
    for _ in range(QUICK_STARTS if testbed.options.quick else STARTS):
        with Server(engine_url=testbed.engine_url, catalogue=testbed.catalogue) as server:
            answers.append(time.perf_counter() - server.started_at)
            route = GatewayRoute(server.url, {"model": "bench"})
            with contextlib.closing(route.open()) as client:
                client.draw(next(testbed.seeds))
                pictures.append(time.perf_counter() - server.started_at)
    return {"first_answer_s": summarize(answers), "first_picture_s": summarize(pictures)}


def measure_memory(testbed: Testbed) -> dict[str, Any]:
    """After the other measurements and some more pictures, so that every worker has drawn."""
    count = QUICK_PICTURES if testbed.options.quick or testbed.options.url else PICTURES
    with LoadGenerator() as load:
        load.run(testbed.gateway(), 8, [next(testbed.seeds) for _ in range(count)])
    workers = [memory_mb(pid) for pid in testbed.server.workers]
    return {
        "workers": [worker for worker in workers if worker],
        "engine": memory_mb(testbed.engine_pid) if testbed.engine_pid else None,
    }
