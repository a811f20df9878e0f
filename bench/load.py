"""Many clients at once. They are threads in two processes, whichever way they go, so that neither way is measured
by how well one Python process can drive it."""

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

from bench.clients import Client, Way

PROCESSES = 2
_READY_S = 60.0
LONGEST_S = 12.0


@dataclass(frozen=True)
class Part:
    """What one process did: when it began and ended on the machine's monotonic clock, and its CPU seconds."""

    began: float
    ended: float
    cpu_s: float
    latencies_s: list[float]


@dataclass(frozen=True)
class Run:
    """What all the clients did together."""

    pictures_per_s: float
    client_cpu_s: float
    latencies_s: list[float]


class Load:
    """`with Load() as load: load.run(way, clients=8, seeds=[…])`: a picture for each seed, by that many clients,
    or as many as they begin in LONGEST_S."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(PROCESSES, context, _prepare, (context.Barrier(PROCESSES),))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def run(self, way: Way, clients: int, seeds: Sequence[int]) -> Run:
        """Each process gets its share of the clients and of the seeds; all begin together."""
        parts = []
        for index in range(PROCESSES):
            own_clients = len(range(index, clients, PROCESSES))
            own_seeds = seeds if clients == 1 else seeds[index::PROCESSES]
            parts.append(self._pool.submit(_work, way, own_clients, list(own_seeds)))
        done = [part for part in (future.result() for future in parts) if part.latencies_s]
        took = max(part.ended for part in done) - min(part.began for part in done)
        return Run(
            sum(len(part.latencies_s) for part in done) / took,
            sum(part.cpu_s for part in done),
            [latency for part in done for latency in part.latencies_s],
        )


_together: Barrier


def _prepare(barrier: Barrier) -> None:
    global _together
    _together = barrier


def _work(way: Way, clients: int, seeds: list[int]) -> Part:
    with _opened(way, clients) as ready:
        _together.wait(_READY_S)
        began, cpu = time.monotonic(), time.process_time()
        latencies = _drawn(ready, deque(seeds)) if ready else []
        return Part(began, time.monotonic(), time.process_time() - cpu, latencies)


@contextlib.contextmanager
def _opened(way: Way, clients: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        try:
            yield [stack.enter_context(contextlib.closing(way.open())) for _ in range(clients)]
        except BaseException:
            _together.abort()  # or the other process would wait for us
            raise


def _drawn(clients: list[Client], seeds: deque[int]) -> list[float]:
    latencies: list[float] = []
    errors: list[BaseException] = []
    until = time.monotonic() + LONGEST_S

    def work(client: Client) -> None:
        try:
            with contextlib.suppress(IndexError):
                while not errors and time.monotonic() < until:
                    latencies.append(client.picture(seeds.popleft()).total_s)
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
