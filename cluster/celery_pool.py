"""The size of Celery's pool of processes, which follows the number of engines while the worker runs."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from celery.worker import state

from cluster.slots import Slots

log = logging.getLogger("easel.cluster")
_LOOK_S = 1.0


class PoolSize(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of the worker's consumer, which starts it again after each loss of Redis. `slots` is set by a subclass. What it
    does happens between two events of the worker's loop, as Celery's own `pool_grow` and `pool_shrink`, which come as a
    message through Redis."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    slots: Slots

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None
        self._prefetched = self.slots.processes
        """How many jobs are taken out of Redis at the same time"""

    def start(self, consumer: Any) -> None:
        self._timer = consumer.timer.call_repeatedly(_LOOK_S, self._adjust, (consumer,))

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    shutdown = stop

    def _adjust(self, consumer: Any) -> None:
        pool, wanted = consumer.pool, self.slots.wanted
        more = wanted - self._prefetched
        if more:
            # First: processes that are to end get no new jobs, and so have none at some time.
            change = consumer.qos.increment_eventually if more > 0 else consumer.qos.decrement_eventually
            change(abs(more))
            consumer.initial_prefetch_count = max(1, consumer.initial_prefetch_count + more)
            self._prefetched = wanted
        before = pool.num_processes
        if wanted > before:
            pool.grow(wanted - before)
            pool.maintain_pool()
        elif wanted < before and not _has_job_on_its_way():
            try:
                pool.shrink(1)
            except ValueError:
                return  # all of them draw
        if pool.num_processes != before:
            log.info("processes that draw: %d instead of %d", pool.num_processes, before)
        self.slots.processes = pool.num_processes


def _has_job_on_its_way() -> bool:
    """Whether a process was given a job and has not said yet that it has it: it would count as idle."""
    return any(request not in state.active_requests for request in state.reserved_requests)
