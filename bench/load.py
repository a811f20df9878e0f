"""Generates load from many clients at once. For every route they are threads in two processes, so that one Python
process is not the bottleneck."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Self

from bench.clients import Client, Route

PROCESSES = 2
READY_TIMEOUT_S = 60.0
MAX_RUN_S = 12.0


@dataclass(frozen=True)
class ProcessResult:
    """What one process did: when it started and ended, on the machine's monotonic clock, and its CPU seconds."""

    started_at: float
    ended_at: float
    cpu_s: float
    latencies_s: list[float]


@dataclass(frozen=True)
class LoadResult:
    """What all clients did together."""

    pictures_per_s: float
    client_cpu_s: float
    latencies_s: list[float]


class LoadGenerator:
    """`with LoadGenerator() as load: load.run(route, clients=8, seeds=[…])` draws one picture for each seed with that
    many clients. No picture is started after MAX_RUN_S."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            PROCESSES, context, _set_start_barrier, (context.Barrier(PROCESSES),)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def run(self, route: Route, clients: int, seeds: Sequence[int]) -> LoadResult:
        """The clients and the seeds are divided between the processes, which start together."""
        futures = []
        for index in range(PROCESSES):
            process_clients = len(range(index, clients, PROCESSES))
            process_seeds = seeds if clients == 1 else seeds[index::PROCESSES]
            futures.append(self._pool.submit(_run_clients, route, process_clients, list(process_seeds)))
        results = [result for result in (future.result() for future in futures) if result.latencies_s]
        elapsed_s = max(result.ended_at for result in results) - min(result.started_at for result in results)
        return LoadResult(
            sum(len(result.latencies_s) for result in results) / elapsed_s,
            sum(result.cpu_s for result in results),
            [latency for result in results for latency in result.latencies_s],
        )


_start_barrier: Barrier


def _set_start_barrier(barrier: Barrier) -> None:
    global _start_barrier
    _start_barrier = barrier


def _run_clients(route: Route, count: int, seeds: list[int]) -> ProcessResult:
    with _open_clients(route, count) as clients:
        _start_barrier.wait(READY_TIMEOUT_S)
        started_at, cpu_before = time.monotonic(), time.process_time()
        latencies = _draw(clients, deque(seeds)) if clients else []
        return ProcessResult(started_at, time.monotonic(), time.process_time() - cpu_before, latencies)


@contextlib.contextmanager
def _open_clients(route: Route, count: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        try:
            yield [stack.enter_context(contextlib.closing(route.open())) for _ in range(count)]
        except BaseException:
            _start_barrier.abort()  # otherwise the other process would wait until READY_TIMEOUT_S
            raise


def _draw(clients: list[Client], seeds: deque[int]) -> list[float]:
    """The latency of each picture, in seconds. Raises the first error of any client."""
    latencies: list[float] = []
    errors: list[BaseException] = []
    deadline = time.monotonic() + MAX_RUN_S

    def work(client: Client) -> None:
        try:
            with contextlib.suppress(IndexError):
                while not errors and time.monotonic() < deadline:
                    latencies.append(client.draw(seeds.popleft()).total_s)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return latencies
