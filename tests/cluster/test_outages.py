"""Outages of Redis that are too short for any command to fail, and long enough for heartbeats to expire."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import names
from cluster.heartbeat import Heartbeat
from cluster.host_facts import HostFacts
from cluster.outages import COUNTS_S, SLOW_S, Outages
from compiler import Catalogue
from generation import JobResult, Uploads
from tests.cluster.hosts_in_process import MODEL, joined_in_process
from tests.waiting import wait_until

PAUSE_S = 4.5
"""Longer than a heartbeat lasts, and shorter than a command waits for its answer"""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "was_outage"), [(1.0, False), (SLOW_S - 0.1, False), (SLOW_S + 0.1, True), (7.0, True)]
)
def test_an_answer_that_comes_late_is_an_outage(seconds: float, was_outage: bool) -> None:
    clock = Clock()
    outages = Outages(clock)
    outages.answered()
    assert not outages.were_lately()
    clock.now += seconds
    assert outages.were_lately() is was_outage  # also before the answer
    outages.answered()
    assert outages.were_lately() is was_outage
    for _ in range(9):
        clock.now += COUNTS_S / 10
        outages.answered()
    assert outages.were_lately() is was_outage
    clock.now += COUNTS_S / 10 + 0.1
    assert not outages.were_lately()


def test_a_failure_is_an_outage() -> None:
    clock = Clock()
    outages = Outages(clock)
    outages.failed()
    assert outages.were_lately()


def test_a_redis_that_pauses_ends_no_job_of_a_host_that_is_there(
    tmp_path: Path, shipped_catalogue: Catalogue
) -> None:
    with joined_in_process(shipped_catalogue, tmp_path) as joined:
        facts = HostFacts("one", "", models=frozenset({MODEL}), slots=8)
        heartbeat = Heartbeat(replace(joined.options, name="one"), lambda: facts, lambda: None)
        heartbeat.take_name()
        heartbeat.start()
        draw_until = threading.Event()
        joined.draw = lambda document, uploads: (draw_until.wait(60), document.id.encode())[1]
        found: list[JobResult] = []
        results = joined.results(joined.compiled(1), Uploads(), [str(uuid.uuid4())])
        thread = threading.Thread(target=lambda: found.extend(results))
        thread.start()
        try:
            wait_until(lambda: joined.taken)
            for _ in range(2):
                time.sleep(1.5)
                joined.client.execute_command("CLIENT", "PAUSE", int(PAUSE_S * 1000))
                time.sleep(PAUSE_S)
            time.sleep(3)  # in which a host that seemed to be gone would have lost the job
            assert [(attempt, host) for _, attempt, host in joined.taken] == [(1, "one")]
            assert joined.client.exists(names.host("one"))
        finally:
            draw_until.set()
            thread.join()
            heartbeat.stop()
    assert [each.failure for each in found] == [None]
