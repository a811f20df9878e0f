"""What streams cost: how much later than from the engine itself a step is told, and how much memory large pictures take
on their way."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from bench.clients import PROMPT, TIMEOUT_S, session
from bench.figures import spread
from bench.processes import peak_mb, reset_peak
from bench.world import World

STEPS, QUICK_STEPS = 40, 5
LARGE, QUICK_LARGE = 10, 2
"""Pictures of 2048x2048 in one answer"""


def measure_streams(world: World) -> dict[str, Any]:
    """Seconds; and how many times the size of its base64 an answer needs at the most."""
    direct, gateway = _first_steps(world, QUICK_STEPS if world.options.quick else STEPS)
    told: dict[str, Any] = {
        "direct_s": direct,
        "gateway_s": gateway,
        "added_s": gateway["median"] - direct["median"],
    }
    if not world.options.url:
        count = QUICK_LARGE if world.options.quick else LARGE
        told["large"] = {
            name: _large(world, count, stream) for name, stream in (("answer", False), ("stream", True))
        }
    return told


def _first_steps(world: World, times: int) -> tuple[dict[str, Any], dict[str, Any]]:
    with (
        contextlib.closing(world.direct.open()) as direct,
        contextlib.closing(world.gateway().open()) as gateway,
    ):
        for client in (direct, gateway):
            client.first_step(next(world.seeds))
        pairs = [
            (direct.first_step(next(world.seeds)), gateway.first_step(next(world.seeds)))
            for _ in range(times)
        ]
    return spread([pair[0] for pair in pairs]), spread([pair[1] for pair in pairs])


def _large(world: World, count: int, stream: bool) -> dict[str, float]:
    """Peak memory of the worker that served it, beyond what it had, by the size of the pictures in base64."""
    workers = world.server.workers
    before = {pid: reset_peak(pid) for pid in workers}
    body = {"prompt": PROMPT, "model": "large", "n": count, "response_format": "b64_json", "stream": stream}
    size = 0
    with session() as asking, asking.post(
        f"{world.server.url}/v1/images/generations", data=json.dumps(body), stream=True, timeout=TIMEOUT_S,
        headers={"Content-Type": "application/json"},
    ) as answer:  # fmt: skip
        answer.raise_for_status()
        for piece in answer.iter_content(65536):
            size += len(piece)
    grown = max(peak_mb(pid) - before[pid] for pid in workers)
    return {"encoded_mb": size / 1_000_000, "grown_mb": grown, "times": grown / (size / 1_000_000)}
