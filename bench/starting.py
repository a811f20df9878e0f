"""How long after its start a gateway answers and draws, and how much memory it holds after work."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from bench.clients import Gateway
from bench.figures import spread
from bench.load import Load
from bench.processes import memory_mib
from bench.server import Server
from bench.world import World

STARTS, QUICK_STARTS = 5, 1
PICTURES, QUICK_PICTURES = 200, 20


def measure_start(world: World) -> dict[str, Any]:
    """Several starts, each in a fresh state directory. The code is compiled to bytecode before: one start went ahead."""
    answers, pictures = [], []
    for _ in range(QUICK_STARTS if world.options.quick else STARTS):
        with Server(engine_url=world.engine_url, catalogue=world.catalogue) as server:
            answers.append(time.perf_counter() - server.began)
            way = Gateway(server.url, {"model": "bench"})
            with contextlib.closing(way.open()) as client:
                client.picture(next(world.seeds))
                pictures.append(time.perf_counter() - server.began)
    return {"first_answer_s": spread(answers), "first_picture_s": spread(pictures)}


def measure_memory(world: World) -> dict[str, Any]:
    """After whatever ran before and some more pictures, so that every worker has drawn."""
    count = QUICK_PICTURES if world.options.quick or world.options.url else PICTURES
    with Load() as load:
        load.run(world.gateway(), 8, [next(world.seeds) for _ in range(count)])
    workers = [memory_mib(pid) for pid in world.server.workers]
    return {
        "workers": [worker for worker in workers if worker],
        "engine": memory_mib(world.engine_pid) if world.engine_pid else None,
    }
