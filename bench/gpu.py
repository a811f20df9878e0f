"""What sharing the GPU costs: an uncontended lease, a switch's own time beside tenants that take none, and a status poll
while fifty watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from arbiter import Arbiter, Policy
from bench.clients import session
from bench.figures import spread
from bench.world import World
from gpu_tenant import Failure, Resident

LEASES, SWITCHES, POLLS = 500, 12, 200
QUICK = 10
"""With --quick everything is done so many times less"""
WATCHERS, WATCH_S = 50, 1.0


class InstantTenant:
    """Does at once what it is asked."""

    def __init__(self, *ids: str) -> None:
        self._ids = set(ids)

    def resident(self) -> tuple[Resident, ...]:
        return tuple(Resident("instant", each) for each in sorted(self._ids))

    def busy(self) -> int | None:
        return 0

    def release(self, residents: Sequence[Resident]) -> None:
        self._ids -= {each.id for each in residents}

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        self._ids |= {each.id for each in residents}
        return ()

    def drop(self, jobs: Sequence[str] | None) -> None:
        """It has none."""


def measure_gpu(world: World) -> dict[str, Any]:
    """Seconds."""
    less = QUICK if world.options.quick else 1
    with TemporaryDirectory(prefix="easel-bench-gpu-") as place:
        arbiter = Arbiter(
            Path(place),
            tenants={"inference": InstantTenant("chat"), "generation": InstantTenant()},
            policy=Policy(min_stay_s=0),
        )
        arbiter.reconciler.start()
        try:
            leases = spread(_timed(lambda: _lease(arbiter), LEASES // less))
            switches = spread(_timed(lambda: _there(arbiter), max(2, SWITCHES // less)))
        finally:
            arbiter.reconciler.stop()
    return {"lease_s": leases, "switch_s": switches, "status_s": spread(_polls(world, POLLS // less))}


def _timed(what: Callable[[], object], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        taken.append(time.perf_counter() - began)
    return taken


def _lease(arbiter: Arbiter) -> None:
    with arbiter.lease("inference", job="bench", timeout_s=5):
        pass


def _there(arbiter: Arbiter) -> None:
    """Ask for the other mode and wait until it is in force."""
    mode = "generation" if arbiter.view().state.mode == "inference" else "inference"
    arbiter.switch(mode)  # type: ignore[arg-type]
    while arbiter.view().state.mode != mode or arbiter.view().state.under_way:
        time.sleep(0.001)


def _polls(world: World, times: int) -> list[float]:
    """One client measures while the others look about once a second each, as open pages do."""
    url, stop = f"{world.server.url}/api/comfyui/status", threading.Event()

    def watch(number: int) -> None:
        with session() as asking:
            stop.wait(WATCH_S * number / WATCHERS)
            while not stop.wait(WATCH_S):
                asking.get(url, timeout=10)

    with ThreadPoolExecutor(WATCHERS) as pool, session() as asking:
        watching = [pool.submit(watch, number) for number in range(WATCHERS - 1)]
        time.sleep(WATCH_S)
        taken = _timed(lambda: asking.get(url, timeout=10).raise_for_status(), times)
        stop.set()
        for each in watching:
            each.result()
    return taken
