"""The last switchovers, read from an event log that other processes write and rotate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arbiter.event_log import EventLog
from arbiter.switch_history import KEPT, SwitchHistory


def switch(log: EventLog, number: int, target: str = "generation", **ended: Any) -> None:
    began = {"reason": "a request waits", "force": False, "waiting": [f"job-{number}"]}
    log.write("switch_began", number=number, target=target, **began)
    values = {"mode": target, "took_s": 2.5, "phases": [["draining", 0.5], ["loading", 2.0]], "error": None}
    log.write("switch_ended", number=number, target=target, **values | ended)


def test_a_switch_has_its_reason_its_cost_and_the_key_that_waited_for_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", 1_000_000, clock=lambda: 50.0)
    history = SwitchHistory(log.path)
    assert history.latest() == ()
    switch(log, 1)
    log.write("lease", mode="generation", job="job-1", key="phone")
    switch(log, 2, "inference", error={"code": "gpu.switch_failed", "message": "no"})
    second, first = history.latest()
    assert (first.source, first.target, first.reason, first.key) == (
        "inference",
        "generation",
        "a request waits",
        "phone",
    )
    assert (first.at, first.seconds, first.phases) == (50.0, 2.5, (("draining", 0.5), ("loading", 2.0)))
    assert (second.source, second.key, second.error) == (
        "generation",
        "",
        {"code": "gpu.switch_failed", "message": "no"},
    )


def test_the_log_may_be_rotated_removed_or_damaged_meanwhile(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", 4000)
    history = SwitchHistory(log.path)
    for number in range(1, 60):  # some rotations
        switch(log, number)
        assert history.latest()[0].number == number
    assert len(history.latest()) == KEPT
    assert [each.number for each in SwitchHistory(log.path).latest()][:3] == [59, 58, 57]
    with log.path.open("ab") as file:
        file.write(
            b'{"event": "switch_ended"}\n{"event": "switch_ended", "number": {}}\n\xff"switch_\n[1, "lease"]\n'
        )
    switch(log, 60)
    assert history.latest()[0].number == 60
    log.path.unlink(missing_ok=True)  # it may just have been rotated
    assert history.latest()[0].number == 60
    switch(log, 61)
    assert history.latest()[0].number == 61


@pytest.mark.parametrize("size", range(700, 1400, 20))
def test_wherever_the_log_is_rotated_no_switch_is_missed(tmp_path: Path, size: int) -> None:
    log = EventLog(tmp_path / "events.jsonl", size)
    history = SwitchHistory(log.path)
    for number in range(1, 12):
        switch(log, number)
        assert history.latest()[0].number == number
        assert history.latest()[0].reason == "a request waits"
    assert [each.number for each in history.latest()] == list(range(11, 0, -1))


def test_a_line_that_is_being_written_is_read_when_it_is_complete(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", 1_000_000)
    history = SwitchHistory(log.path)
    switch(log, 1)
    whole = log.path.read_bytes()
    with log.path.open("ab") as file:
        file.write(whole[: len(whole) // 2])
    assert len(history.latest()) == 1
    with log.path.open("ab") as file:
        file.write(whole[len(whole) // 2 :])
    assert len(history.latest()) == 2
