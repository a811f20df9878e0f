"""How soon after its start a gateway responds and draws, and how much memory it uses after a load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from bench.load import LoadGenerator
from bench.processes import Memory, memory_mb
from bench.summary import summarize
from bench.testbed import Testbed, gateway_route

STARTS, QUICK_STARTS = 5, 1
PICTURES, QUICK_PICTURES = 200, 20


def measure_start(testbed: Testbed) -> dict[str, Any]:
    """Several starts, each in a new state directory. The bytecode is already compiled, because the testbed's own server
    has started before."""
    answers, pictures = [], []
    for _ in range(QUICK_STARTS if testbed.options.quick else STARTS):
        answer_s, picture_s = start_and_draw(testbed, min(testbed.sizes))
        answers.append(answer_s)
        pictures.append(picture_s)
    return {"first_answer_s": summarize(answers), "first_picture_s": summarize(pictures)}


def start_and_draw(testbed: Testbed, size: int) -> tuple[float, float]:
    """Seconds from the start of another gateway to its first response and to its first picture."""
    with testbed.another_server() as server:
        answer_s = time.perf_counter() - server.started_at
        with contextlib.closing(gateway_route(server.url, testbed.engine, size).open()) as client:
            client.draw(next(testbed.seeds))
        return answer_s, time.perf_counter() - server.started_at


def measure_memory(testbed: Testbed) -> dict[str, Any]:
    """A new gateway's workers once each has drawn small pictures; and those that have served all measurements so far."""
    count = QUICK_PICTURES if testbed.options.quick else PICTURES
    size = min(testbed.sizes)
    with LoadGenerator() as load, testbed.another_server() as server:
        seeds = [next(testbed.seeds) for _ in range(count)]
        load.run(gateway_route(server.url, testbed.engine, size), 8, seeds)
        workers = _memories(server.workers)
    return {
        "size": size,
        "pictures": count,
        "workers": workers,
        "after_the_run": _memories(testbed.server.workers),
        "engine": memory_mb(testbed.engine.pid) if testbed.engine.pid else None,
    }


def _memories(pids: Sequence[int]) -> list[Memory]:
    """Empty on systems without /proc."""
    return [memory for memory in map(memory_mb, pids) if memory]
