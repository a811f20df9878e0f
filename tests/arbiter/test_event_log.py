"""The event log: what is written, rotation, several processes, errors."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter, Policy
from arbiter.event_log import EventLog, before, read_lines
from errors import GpuBusy
from tests.arbiter.fakes import FakeEngine, FakeStacks
from tests.waiting import wait_until


def events(arbiter: Arbiter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(arbiter.events.path)]


def start(folder: Path, **policy: Any) -> Arbiter:
    arbiter = Arbiter(
        folder,
        tenants={"inference": FakeStacks(), "generation": FakeEngine()},
        policy=Policy(**{"min_stay_s": 0, "restore": "never", **policy}),
        event_log_bytes=10**6,
    )
    arbiter.reconciler.start()
    return arbiter


def test_who_waited_why_it_switched_and_what_it_cost(tmp_path: Path) -> None:
    arbiter = start(tmp_path)
    with arbiter.lease("generation", job="picture", key="anna", timeout_s=20) as lease:
        lease.record_run(1.5)
    arbiter.pin(True)
    arbiter.pin(False)
    arbiter.switch("inference")
    wait_until(
        lambda: any(each["event"] == "switch_ended" and each["number"] == 2 for each in events(arbiter))
    )
    arbiter.reconciler.stop()
    policy, began, ended, leased, pinned, unpinned, *rest = events(arbiter)
    assert (policy["event"], policy["min_stay_s"], policy["restore"]) == ("policy", 0, "never")
    assert (began["event"], began["reason"], began["waiting"]) == (
        "switch_began",
        "image request",
        ["picture"],
    )
    assert (ended["event"], ended["target"], ended["mode"], ended["error"]) == (
        "switch_ended",
        "generation",
        "generation",
        None,
    )
    assert sum(seconds for _, seconds in ended["phases"]) == pytest.approx(ended["took_s"], abs=0.01)
    assert (leased["event"], leased["job"], leased["key"], leased["run_s"]) == (
        "lease",
        "picture",
        "anna",
        1.5,
    )
    assert leased["waited_s"] >= ended["took_s"] - 0.1
    assert (pinned["pinned"], unpinned["pinned"]) == (True, False)
    assert {each["event"] for each in rest} == {"requested", "switch_began", "switch_ended"}
    assert next(each for each in rest if each["event"] == "switch_began")["reason"] == "requested"


def test_a_request_that_gives_up_is_logged_with_its_reason(tmp_path: Path) -> None:
    arbiter = start(tmp_path, depth=1)
    with (
        arbiter.lease("generation", job="first", timeout_s=20),
        pytest.raises(GpuBusy),
        arbiter.lease("generation", job="second", timeout_s=0.05),
    ):
        pass
    arbiter.reconciler.stop()
    given_up = [each for each in events(arbiter) if each["event"] == "gave_up"]
    assert [(each["job"], each["error"]) for each in given_up] == [("second", GpuBusy.code)]


def test_the_file_and_the_one_before_it_keep_the_newest_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "gpu" / "events.jsonl", 10_000)
    for number in range(1_000):
        log.write("test", number=number)
    size = log.path.stat().st_size + before(log.path).stat().st_size
    assert 5_000 < size <= 10_200
    numbers = [json.loads(line)["number"] for line in read_lines(log.path)]
    assert numbers == list(range(numbers[0], 1_000))
    assert (log.path.stat().st_mode & 0o777) == 0o600


def test_none_is_written_if_its_size_is_zero(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl", 0).write("test")
    assert list(tmp_path.iterdir()) == []


def _write_many(path: Path, name: str) -> None:
    log = EventLog(path, 200_000)
    for number in range(500):
        log.write("test", name=name, number=number, text="x" * 200)


def test_lines_of_several_processes_do_not_mix_and_none_is_lost(tmp_path: Path) -> None:
    path, context = tmp_path / "events.jsonl", multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for line in read_lines(path):
        event = json.loads(line)
        seen[event["name"]].append(event["number"])
    # What is left after the rotations is the end of both, without a gap.
    for numbers in filter(None, seen.values()):
        assert numbers == list(range(numbers[0], 500))
    assert max(len(numbers) for numbers in seen.values()) > 100


def test_an_error_costs_lines_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "events.jsonl", 10**6)
    log.path.mkdir()
    for _ in range(3):
        log.write("test")
    log.path.rmdir()
    log.write("test")
    assert len(caplog.records) == 1
    assert "events.jsonl" in caplog.text
    assert len(log.path.read_text().splitlines()) == 1


def test_what_a_full_disk_cuts_off_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit for the size of files takes a part of a line, as a disk does that is nearly full."""
    import resource
    import signal

    log = EventLog(tmp_path / "events.jsonl", 10**6)
    log.write("first")
    before_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, before_limit[1]))
    try:
        log.write("cut off")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before_limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "cannot write events.jsonl" in caplog.text
    for name in ("second", "third"):
        log.write(name)
    lines = [line for line in read_lines(log.path) if line.startswith("{") and line.endswith("}\n")]
    assert [json.loads(line)["event"] for line in lines] == ["first", "second", "third"]


def test_a_log_that_is_a_link_or_a_pipe_does_not_stop_a_request(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    link = EventLog(tmp_path / "link.jsonl", 10**6)
    link.path.symlink_to(elsewhere)
    link.write("test")
    assert not elsewhere.exists()
    pipe = EventLog(tmp_path / "pipe.jsonl", 10**6)
    os.mkfifo(pipe.path)
    done = threading.Event()
    threading.Thread(target=lambda: (pipe.write("test"), done.set()), daemon=True).start()
    assert done.wait(90)
