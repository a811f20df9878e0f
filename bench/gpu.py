"""What sharing the GPU costs: an uncontended lease, a switchover between tenants that take no time, and a status
request while 50 clients poll."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from arbiter import Arbiter, Policy
from bench.clients import session
from bench.summary import summarize
from bench.testbed import Testbed
from gpu_tenant import Failure, Resident
from scratch_folder import ScratchFolder

LEASES, SWITCHES, POLLS = 500, 12, 200
QUICK_DIVISOR = 10
"""With --quick, every number of repetitions is divided by this."""
CLIENTS, POLL_INTERVAL_S = 50, 1.0


class InstantTenant:
    """A tenant whose calls take no time."""

    def __init__(self, *ids: str) -> None:
        self._ids = set(ids)

    def resident(self) -> tuple[Resident, ...]:
        return tuple(Resident("instant", id) for id in sorted(self._ids))

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        return self.resident()

    def busy(self) -> int | None:
        return 0

    def release(self, residents: Sequence[Resident]) -> None:
        self._ids -= {resident.id for resident in residents}

    def restore(self, residents: Sequence[Resident], is_cancelled: Callable[[], bool]) -> tuple[Failure, ...]:
        self._ids |= {resident.id for resident in residents}
        return ()

    def cancel_jobs(self, jobs: Sequence[str] | None) -> bool:
        """It has no jobs."""
        return True


def measure_gpu(testbed: Testbed) -> dict[str, Any]:
    """Seconds."""
    divisor = QUICK_DIVISOR if testbed.options.quick else 1
    with ScratchFolder("easel-bench-gpu-") as folder:
        arbiter = Arbiter(
            Path(folder),
            tenants={"inference": InstantTenant("chat"), "generation": InstantTenant()},
            policy=Policy(min_stay_s=0),
        )
        arbiter.reconciler.start()
        try:
            leases = summarize(_timed(lambda: _lease(arbiter), LEASES // divisor))
            switches = summarize(_timed(lambda: _switch(arbiter), max(2, SWITCHES // divisor)))
        finally:
            arbiter.reconciler.stop()
    status = summarize(_status_requests(testbed, POLLS // divisor))
    return {"lease_s": leases, "switch_s": switches, "status_s": status}


def _timed(function: Callable[[], object], times: int) -> list[float]:
    durations = []
    for _ in range(times):
        started_at = time.perf_counter()
        function()
        durations.append(time.perf_counter() - started_at)
    return durations


def _lease(arbiter: Arbiter) -> None:
    with arbiter.lease("inference", job="bench", timeout_s=5):
        pass


def _switch(arbiter: Arbiter) -> None:
    """Request the other mode and wait until it is in force."""
    mode = "generation" if arbiter.snapshot().state.mode == "inference" else "inference"
    arbiter.switch(mode)  # type: ignore[arg-type]
    while arbiter.snapshot().state.mode != mode or arbiter.snapshot().state.active_switch:
        time.sleep(0.001)


def _status_requests(testbed: Testbed, times: int) -> list[float]:
    """The times of one client's requests while each other client polls about once a second, as open pages do."""
    url, stop = f"{testbed.server.url}/api/comfyui/status", threading.Event()

    def poll(number: int) -> None:
        with session() as http:
            stop.wait(POLL_INTERVAL_S * number / CLIENTS)
            while not stop.wait(POLL_INTERVAL_S):
                http.get(url, timeout=10)

    with ThreadPoolExecutor(CLIENTS) as pool, session() as http:
        pollers = [pool.submit(poll, number) for number in range(CLIENTS - 1)]
        time.sleep(POLL_INTERVAL_S)
        durations = _timed(lambda: http.get(url, timeout=10).raise_for_status(), times)
        stop.set()
        for poller in pollers:
            poller.result()
    return durations
