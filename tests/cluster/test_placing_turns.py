"""The processes of a host with several engines place their jobs one after another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from engines import Fleet
from tests.waiting import wait_until


def fleet(lock: Path, engines: int) -> Fleet:
    """As one process has it."""
    units: list[Any] = [object()] * engines
    return Fleet(units, placing_lock=lock)


def test_a_process_waits_until_the_job_of_another_one_has_a_claim(tmp_path: Path) -> None:
    lock, order = tmp_path / "placing.lock", list[str]()
    one, two = fleet(lock, 2), fleet(lock, 2)
    has_claim = one.begin_placing()

    def place() -> None:
        ended = two.begin_placing()
        order.append("second")
        ended()

    thread = threading.Thread(target=place)
    thread.start()
    thread.join(0.2)
    assert order == []
    order.append("first")
    has_claim()
    wait_until(lambda: len(order) == 2)
    thread.join()
    assert order == ["first", "second"]


def test_a_process_that_never_has_a_claim_holds_the_others_up_for_a_moment_only(tmp_path: Path) -> None:
    lock = tmp_path / "placing.lock"
    fleet(lock, 2).begin_placing()
    fleet(lock, 2).begin_placing()()


def test_with_one_engine_nobody_waits(tmp_path: Path) -> None:
    lock = tmp_path / "placing.lock"
    fleet(lock, 1).begin_placing()
    assert not lock.exists()
