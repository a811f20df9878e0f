"""Generates load from many clients at once. For every route they are threads in two processes, so that one Python
process is not the bottleneck."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Self

from bench.clients import Client, Route, check_all_new, fingerprint

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
    fingerprints: list[int]
    """Of its pictures"""


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
        self._pool = ProcessPoolExecutor(PROCESSES, context, _prepare, (context.Barrier(PROCESSES),))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # what they do now interests nobody, and may take long
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown()

    def run(self, route: Route, clients: int, seeds: Sequence[int]) -> LoadResult:
        """The clients and the seeds are divided between the processes, which start together."""
        futures = []
        for index in range(PROCESSES):
            process_clients = len(range(index, clients, PROCESSES))
            process_seeds = seeds if clients == 1 else seeds[index::PROCESSES]
            futures.append(self._pool.submit(_run_clients, route, process_clients, list(process_seeds)))
        results = [result for result in _results(futures) if result.latencies_s]
        check_all_new(route.name, [each for result in results for each in result.fingerprints])
        elapsed_s = max(result.ended_at for result in results) - min(result.started_at for result in results)
        return LoadResult(
            sum(len(result.latencies_s) for result in results) / elapsed_s,
            sum(result.cpu_s for result in results),
            [latency for result in results for latency in result.latencies_s],
        )


_start_barrier: Barrier


def _prepare(barrier: Barrier) -> None:
    """In each process. Ctrl-C in a terminal goes to all of them: the benchmark's own process ends the others."""
    global _start_barrier
    _start_barrier = barrier
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _results(futures: Sequence[Future[ProcessResult]]) -> list[ProcessResult]:
    """Of all processes. Raises the error of the one that failed, not that of those that waited for it."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    return [future.result() for future in futures]


def _run_clients(route: Route, count: int, seeds: list[int]) -> ProcessResult:
    with _open_clients(route, count) as clients:
        _start_barrier.wait(READY_TIMEOUT_S)
        started_at, cpu_before = time.monotonic(), time.process_time()
        latencies, fingerprints = _draw(clients, deque(seeds))
        cpu_s = time.process_time() - cpu_before
        return ProcessResult(started_at, time.monotonic(), cpu_s, latencies, fingerprints)


@contextlib.contextmanager
def _open_clients(route: Route, count: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        try:
            yield [stack.enter_context(contextlib.closing(route.open())) for _ in range(count)]
        except BaseException:
            _start_barrier.abort()  # otherwise the other process would wait until READY_TIMEOUT_S
            raise


def _draw(clients: list[Client], seeds: deque[int]) -> tuple[list[float], list[int]]:
    """The latency of each picture, in seconds, and its fingerprint. Raises the first error of any client."""
    latencies: list[float] = []
    fingerprints: list[int] = []
    errors: list[BaseException] = []
    deadline = time.monotonic() + MAX_RUN_S

    def work(client: Client) -> None:
        try:
            with contextlib.suppress(IndexError):
                while not errors and time.monotonic() < deadline:
                    drawn = client.draw(seeds.popleft())
                    latencies.append(drawn.total_s)
                    fingerprints.append(fingerprint(drawn.picture))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return latencies, fingerprints
