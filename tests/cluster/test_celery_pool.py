"""The size of Celery's pool, without a worker."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker import state

from cluster.celery_pool import PoolSize
from cluster.slots import Slots


class Request:
    """A job that a worker has taken."""


class PlayedPool:
    def __init__(self, processes: int) -> None:
        self.num_processes = processes

    def grow(self, count: int) -> None:
        self.num_processes += count

    def shrink(self, count: int) -> None:
        self.num_processes -= count

    def maintain_pool(self) -> None:
        """It has them."""


class PlayedConsumer:
    """`prefetched`: how many jobs it takes at the same time."""

    def __init__(self, processes: int) -> None:
        self.pool, self.qos = PlayedPool(processes), self
        self.initial_prefetch_count = self.prefetched = processes

    def increment_eventually(self, count: int) -> None:
        self.prefetched += count

    def decrement_eventually(self, count: int) -> None:
        self.prefetched -= count


def step_of(slots: Slots, consumer: Any) -> PoolSize:
    class Step(PoolSize):
        """As `celery_app` makes it."""

    Step.slots = slots
    return Step(consumer)


def test_no_process_ends_while_one_has_a_job_that_it_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as idle until it says that it has the job, and would be ended with it."""
    request, reserved, active = Request(), set[Request](), set[Request]()
    monkeypatch.setattr(state, "reserved_requests", reserved)
    monkeypatch.setattr(state, "active_requests", active)
    engines, consumer = [object(), object()], PlayedConsumer(2)
    slots = Slots(lambda: len(engines))
    step = step_of(slots, consumer)
    engines.pop()
    reserved.add(request)
    step._adjust(consumer)
    assert (consumer.pool.num_processes, consumer.prefetched) == (2, 1)
    active.add(request)
    step._adjust(consumer)
    assert (consumer.pool.num_processes, consumer.prefetched, slots.processes) == (1, 1, 1)
