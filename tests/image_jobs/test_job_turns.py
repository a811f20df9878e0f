"""Whose job is drawn next, also after the jobs of an owner had to wait for its limits."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from errors import KeyLimitReached
from image_jobs import JobQueue, JobRequest, JobWorkers, TakenJob
from image_jobs.job_names import QueuedName, owner_digest
from image_jobs.turns import TurnFile, Turns, next_turn
from tests.waiting import wait_until


def job(turn: int, owner: str, number: int = 0) -> QueuedName:
    return QueuedName(turn, number, owner, 1, "imgjob_" + "0" * 32)


def owners(jobs: list[QueuedName]) -> str:
    return "".join(each.owner for each in jobs)


def add(queue: JobQueue, owner: str) -> None:
    queue.add(JobRequest(seed=7, content={}, owner=owner))


def take(queue: JobQueue, held_back: Collection[str] = ()) -> TakenJob | None:
    digests = {owner_digest(owner) for owner in held_back}
    return queue.take(lambda owner: owner in digests)


def draw(queue: JobQueue, held_back: Collection[str] = ()) -> str:
    """Draw the next job, as a worker does; its owner."""
    taken = take(queue, held_back)
    assert taken is not None
    taken.end("done")
    if queue.has_missed_turns(taken.name):
        queue.catch_up(taken.name.owner)
    return taken.status.owner


# --- with values -----------------------------------------------------------------------------------


def test_a_new_job_is_not_before_the_present_turn_although_jobs_of_earlier_turns_wait() -> None:
    queue = [job(0, "a"), job(1, "a"), job(50, "c")]
    assert next_turn(queue, "b", Turns(now=50)) == 50
    assert next_turn(queue, "a", Turns(now=50)) == 50
    assert next_turn([job(60, "b"), *queue], "b", Turns(now=50)) == 61


def test_jobs_that_have_missed_their_turns_begin_with_the_present_one() -> None:
    queue = [job(0, "a"), job(1, "a"), job(2, "a"), job(50, "c"), job(51, "c"), job(52, "c")]
    caught_up = Turns(now=50).caught_up(queue[0])
    assert owners(caught_up.in_order(queue)) == "acacac"
    assert caught_up.caught_up(queue[0]) == caught_up


def test_a_delay_that_an_owner_has_already_counts_for_its_new_jobs() -> None:
    turns = Turns(now=50, delays={"a": 45})
    assert next_turn([job(5, "a"), job(6, "a")], "a", turns) == 7
    assert turns.of(job(7, "a")) == 52
    assert next_turn([job(2, "a")], "a", turns) == 5


def test_delays_of_owners_without_jobs_are_forgotten() -> None:
    assert Turns(3, {"a": 1, "b": 2, "c": 0}).of_owners("ac").delays == {"a": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"now": -1, "delays": {}, "had": []}',
        b'{"now": 1e3, "delays": {}, "had": []}',
        b'{"now": 0, "delays": {"a": 1e99}, "had": []}',
        b'{"now": 99999999999999999999, "delays": {}, "had": []}',
        b'{"now": 0, "delays": 3, "had": []}',
        b'{"now": 0, "delays": {}, "had": [3]}',
        b"\xff" * 100,
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_only_costs_the_order(tmp_path: Path, content: bytes) -> None:
    queue = JobQueue(tmp_path)
    for owner in "aab":
        add(queue, owner)
    (tmp_path / "turns.json").write_bytes(content)
    assert TurnFile(tmp_path / "turns.json").turns() == Turns()
    assert sorted(draw(JobQueue(tmp_path)) for _ in range(3)) == list("aab")
    add(queue, "a")
    assert draw(queue) == "a"


def test_an_owner_that_had_the_present_turn_joins_the_next_one() -> None:
    turns = Turns(now=4).after_begin(job(5, "a")).after_begin(job(5, "b")).after_begin(job(2, "c"))
    assert turns == Turns(now=5, had=("a", "b", "c"))
    assert [next_turn([], owner, turns) for owner in "acd"] == [6, 6, 5]
    assert owners(turns.caught_up(job(2, "c")).in_order([job(2, "c"), job(6, "a")])) == "ca"
    assert turns.after_begin(job(6, "d")) == Turns(now=6, had=("d",))


# --- with files ------------------------------------------------------------------------------------


def test_the_jobs_of_a_key_at_its_limit_let_no_other_key_overtake_a_third_without_end(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    for owner in "a" * 20 + "c" * 20:
        add(queue, owner)
    drawn = ["b"]
    for _ in range(20):
        if drawn[-1] == "b":  # it sends the next one when it has the last one
            add(queue, "b")
        drawn.append(draw(queue, held_back="a"))
    assert 9 <= drawn.count("c") <= 11


def test_a_key_whose_limit_begins_anew_takes_turns_with_the_others(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    for owner in "a" * 20 + "c" * 40:
        add(queue, owner)
    for _ in range(20):
        assert draw(queue, held_back="a") == "c"
    assert "".join(draw(queue) for _ in range(12)).count("a") <= 7


def test_a_key_that_is_held_back_again_and_again_is_drawn_when_it_may_be(tmp_path: Path) -> None:
    queue, drawn = JobQueue(tmp_path), []
    for owner in "a" * 5 + "c" * 200:
        add(queue, owner)
    for _ in range(10):
        held = take(queue)
        assert held is not None
        held.put_back()
        queue.catch_up(owner_digest("a"))
        drawn += [draw(queue, held_back="a") for _ in range(5)]
    drawn = [draw(queue) for _ in range(12)]
    assert drawn.count("a") == 5
    assert drawn[0] == "a" or drawn[1] == "a"


def test_a_worker_catches_up_for_a_key_at_its_limit(tmp_path: Path) -> None:
    queue, may_draw, drawn = JobQueue(tmp_path), [False], []

    def draw_job(taken: TakenJob, request: JobRequest) -> dict[str, str]:
        if request.owner == "a" and not may_draw[0]:
            raise KeyLimitReached("later", retry_after_s=0.2)
        drawn.append(request.owner)
        may_draw[0] = may_draw[0] or drawn.count("c") >= 30
        return {}

    for owner in "a" * 20 + "c" * 60:
        add(queue, owner)
    workers = JobWorkers(queue, draw_job, count=1)
    workers.start()
    try:
        wait_until(lambda: len(drawn) == 80, timeout_s=60)
    finally:
        workers.stop(5)
    began = drawn.index("a")
    assert drawn[began : began + 20].count("a") <= 12


def test_a_thread_without_a_job_does_not_list_a_long_queue_that_is_held_back(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    add(queue, "a")
    sample = next((tmp_path / "queue").iterdir())
    for number in range(3000):
        (tmp_path / "queue" / sample.name.replace(sample.name[-32:], f"{number:032x}")).touch()
    old = time.time() - 10
    os.utime(tmp_path / "queue", (old, old))

    def cpu_of_looks(looks: list[JobQueue]) -> float:
        began = time.thread_time()
        assert all(take(each, held_back="a") is None for each in looks)
        return time.thread_time() - began

    listed = cpu_of_looks([JobQueue(tmp_path) for _ in range(20)])
    assert cpu_of_looks([queue] * 20) < listed / 3
    add(JobQueue(tmp_path), "b")
    assert draw(queue, held_back="a") == "b"
