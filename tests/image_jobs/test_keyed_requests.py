"""Records of requests with a key, without HTTP."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from errors import IdempotencyKeyReused, JobTimedOut, RequestCancelled
from image_jobs import KeyedRequest, KeyedRequests, Replay
from image_jobs.file_claim import FileClaim, is_claimed
from image_jobs.keyed_requests import DIED, MAX_AGE_S
from tests.waiting import wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def enter(requests: KeyedRequests, key: str = "k", fingerprint: str = "f", **options: Any) -> Any:
    def load(answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return answer

    defaults = {"seed": 5, "load": load, "timeout_s": 60.0}
    return requests.enter("owner", key, fingerprint, **{**defaults, **options})


def answer(requests: KeyedRequests, key: str = "k") -> None:
    entered = enter(requests, key)
    assert isinstance(entered, KeyedRequest)
    entered.answered({"is": key})


def test_a_record_is_valid_for_a_day(tmp_path: Path) -> None:
    clock = Clock()
    requests = KeyedRequests(tmp_path, clock=clock)
    answer(requests)
    clock.now += MAX_AGE_S - 1
    assert enter(requests) == Replay({"is": "k"}, None)
    clock.now += 2
    assert isinstance(enter(requests, fingerprint="another"), KeyedRequest)


def test_a_clock_that_is_set_back_loses_no_answer_and_keeps_none_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    answer(KeyedRequests(tmp_path, clock=clock))
    for path in tmp_path.glob("*.json"):
        os.utime(path, (clock.now, clock.now))
    clock.now -= 10 * MAX_AGE_S
    requests = KeyedRequests(tmp_path, clock=clock)
    assert enter(requests) == Replay({"is": "k"}, None)
    clock.now += MAX_AGE_S + 1
    requests.sweep()
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_records_are_removed_if_there_are_too_many(tmp_path: Path) -> None:
    requests = KeyedRequests(tmp_path, max_count=3)
    for number in range(5):
        answer(requests, str(number))
        for path in tmp_path.glob("*.json"):
            about = path.stat()
            os.utime(path, (about.st_atime - 10, about.st_mtime - 10))
    requests.sweep()
    assert [isinstance(enter(requests, str(number)), Replay) for number in range(5)] == [
        *(False, False, True, True, True)
    ]


def test_the_records_have_a_limit_of_bytes(tmp_path: Path) -> None:
    requests = KeyedRequests(tmp_path, max_bytes=1)
    answer(requests)
    requests.sweep()
    assert isinstance(enter(requests), KeyedRequest)


def test_a_record_whose_request_runs_is_not_removed(tmp_path: Path) -> None:
    requests = KeyedRequests(tmp_path, max_count=0)
    running = enter(requests)
    requests.sweep()
    running.answered({"is": "there"})
    assert enter(requests) == Replay({"is": "there"}, None)


def test_an_answer_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    requests = KeyedRequests(tmp_path)
    entered = enter(requests)
    entered.answered({"is": "x" * 1_000_000})
    assert not entered.is_recorded
    assert isinstance(enter(requests), KeyedRequest)


def test_waiting_ends_when_its_client_hangs_up_and_when_its_time_is_over(tmp_path: Path) -> None:
    requests = KeyedRequests(tmp_path)
    first = enter(requests)
    with pytest.raises(RequestCancelled):
        enter(requests, cancelled=lambda: True)
    with pytest.raises(JobTimedOut):
        enter(requests, timeout_s=0)
    with pytest.raises(IdempotencyKeyReused):
        enter(requests, fingerprint="another")
    first.forget()
    assert isinstance(enter(requests, fingerprint="another"), KeyedRequest)


def _hold(folder: Path) -> None:
    entered = enter(KeyedRequests(folder), seed=77)
    assert isinstance(entered, KeyedRequest)
    (folder / "held").touch()
    signal.pause()


def test_the_request_of_a_killed_process_is_drawn_at_once_with_its_seed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path,))
    process.start()
    wait_until(lambda: (tmp_path / "held").exists())
    with pytest.raises(JobTimedOut):
        enter(KeyedRequests(tmp_path), timeout_s=0)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    entered = enter(KeyedRequests(tmp_path), seed=1)
    assert isinstance(entered, KeyedRequest)
    assert (entered.seed, entered.again) == (77, DIED)


def test_a_claim_is_exclusive_and_follows_its_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    assert FileClaim.take(path) is None
    claim = FileClaim.take(path, create=True)
    assert claim is not None
    assert is_claimed(path)
    assert FileClaim.take(path) is None
    claim.rename(other)
    assert FileClaim.take(path) is None
    assert is_claimed(other)
    claim.release()
    claim.release(remove=True)
    assert not is_claimed(other)
    assert FileClaim.take(other) is not None
