"""The queue of jobs, without HTTP and without an engine."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from errors import (
    EngineUnreachable,
    ImageJobNotFound,
    ImageJobsFull,
    InvalidValue,
    JobInterrupted,
    KeyLimitReached,
    RequestCancelled,
    ServerStopping,
    StateUnwritable,
    StoreFull,
)
from image_jobs import JobQueue, JobRequest, JobView, JobWorkers, TakenJob
from image_jobs.job_queue import MAX_AGE_S
from tests.waiting import wait_until

REQUEST = JobRequest(seed=7, content={"prompt": "a cat"})


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def add(queue: JobQueue, owner: str = "ann", **options: Any) -> str:
    return queue.add(JobRequest(**{"seed": 7, "content": {"prompt": "a cat"}, "owner": owner, **options})).id


def view(queue: JobQueue, job_id: str) -> JobView:
    found = queue.get(job_id)
    assert found is not None
    return found


def state(queue: JobQueue, job_id: str) -> str:
    return view(queue, job_id).status.state


def take(queue: JobQueue) -> TakenJob:
    job = queue.take()
    assert job is not None
    return job


def draw_all(queue: JobQueue) -> list[str]:
    """The owners in the order in which their jobs are drawn."""
    owners = []
    while (job := queue.take()) is not None:
        owners.append(job.status.owner)
        assert job.end("done", result={})
    return owners


@contextmanager
def working(
    queue: JobQueue, draw: Callable[..., Any], count: int = 1, **options: Any
) -> Iterator[JobWorkers]:
    workers = JobWorkers(queue, draw, **{"count": count, "max_pause_s": 0.01, **options})
    workers.start()
    try:
        yield workers
    finally:
        workers.stop(60)


# --- order -----------------------------------------------------------------------------------------


def test_the_jobs_of_one_owner_are_drawn_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    ids = [add(queue) for _ in range(5)]
    drawn = []
    while (job := queue.take()) is not None:
        drawn.append(job.status.id)
        job.end("done")
    assert drawn == ids


def test_owners_take_turns_however_many_jobs_they_have(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    for owner in "aaaaabbc":
        add(queue, owner)
    assert draw_all(queue) == list("abcabaaa")


def test_a_new_owner_comes_after_the_jobs_that_are_drawn_and_before_the_rest_of_a_flood(
    tmp_path: Path,
) -> None:
    queue = JobQueue(tmp_path)
    for _ in range(50):
        add(queue, "flood")
    for _ in range(10):
        take(queue).end("done")
    running = take(queue)
    late = add(queue, "late")
    assert view(queue, late).waiting_before == 0
    assert take(queue).status.id == late
    running.end("done")


def test_an_owner_that_keeps_adding_does_not_starve_another(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    add(queue, "busy")
    patient = [add(queue, "patient") for _ in range(3)]
    drawn = []
    for _ in range(10):
        add(queue, "busy")
        job = take(queue)
        drawn.append(job.status.id)
        job.end("done")
    assert set(patient) <= set(drawn[:7])


def test_a_clock_that_is_set_back_changes_neither_order_nor_places(tmp_path: Path) -> None:
    clock = Clock()
    queue = JobQueue(tmp_path, clock=clock)
    first = add(queue)
    clock.now -= 100_000
    second = add(queue)
    assert [view(queue, first).place, view(queue, second).place] == [0, 1]
    assert take(queue).status.id == first


def test_places_count_the_jobs_that_are_not_drawn_yet(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    ids = [add(queue) for _ in range(4)]
    take_one, take_two = take(queue), take(queue)
    for job in (take_one, take_two):
        job.begin()
    views = [view(JobQueue(tmp_path), job_id) for job_id in ids]
    assert [one.status.state for one in views] == ["running", "running", "queued", "queued"]
    assert [one.waiting_before for one in views[2:]] == [0, 1]


# --- limits ----------------------------------------------------------------------------------------


def test_a_full_queue_refuses_jobs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, max_count=2)
    for _ in range(2):
        add(queue)
    with pytest.raises(ImageJobsFull) as caught:
        add(queue)
    assert caught.value.details["waiting"] == 2
    assert len(list((tmp_path / "work").iterdir())) == 2
    take(queue).end("done")
    add(queue)


def test_the_bytes_of_uploads_are_limited(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, max_bytes=1_000_000)
    add(queue, files=(b"x" * 1_000_000,))
    with pytest.raises(ImageJobsFull):
        add(queue)


def test_an_owner_leaves_places_to_others_if_there_are_several(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, max_count=8, max_bytes=1_000_000, has_several_owners=lambda: True)
    for _ in range(6):
        add(queue, "flood")
    with pytest.raises(ImageJobsFull, match="6 image jobs of this key") as caught:
        add(queue, "flood")
    assert caught.value.details["waiting"] == 6
    add(queue, "other", files=(b"x" * 800_000,))
    with pytest.raises(ImageJobsFull, match="of this key"):
        queue.check_room("other")
    add(queue, "third")
    with pytest.raises(ImageJobsFull, match="8 image jobs with"):
        queue.check_room("fourth")


def test_a_folder_that_cannot_be_written_is_an_error_and_no_job(tmp_path: Path) -> None:
    os.symlink("/sys/kernel", tmp_path / "jobs")
    with pytest.raises(StateUnwritable):
        add(JobQueue(tmp_path / "jobs"))


def test_what_a_job_was_sent_is_private_and_removed_when_it_ends(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue, files=(b"picture",))
    folder = tmp_path / "work" / job_id
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    take(queue).end("done", result={"is": 1})
    assert [path.name for path in folder.iterdir()] == ["status.json"]
    assert "a cat" not in (folder / "status.json").read_text()


# --- processes that die ----------------------------------------------------------------------------


def die(job: TakenJob) -> None:
    """What the kernel does when the process of a job is killed."""
    job._claim.release()


def test_a_job_whose_process_died_is_taken_again_with_its_seed(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue, seed=99)
    job = take(queue)
    job.begin()
    assert queue.take() is None
    assert state(queue, job_id) == "running"
    die(job)
    assert state(JobQueue(tmp_path), job_id) == "queued"
    again = take(queue)
    request = again.folder.read_request()
    assert request is not None
    assert (again.status.id, request.seed, again.status.attempts) == (job_id, 99, 1)


def test_a_job_whose_process_died_after_it_wrote_the_end_is_not_drawn_again(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    job = take(queue)
    # As `end`, up to the rename.
    document = {**json.loads((job.folder.path / "status.json").read_text()), "state": "done", "result": {}}
    (job.folder.path / "status.json").write_text(json.dumps(document))
    die(job)
    assert queue.take() is None
    assert state(queue, job_id) == "done"
    assert list((tmp_path / "queue").iterdir()) == []
    assert len(list((tmp_path / "ended").iterdir())) == 1


def test_a_job_that_ends_its_process_each_time_fails(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    for _ in range(5):
        job = take(queue)
        job.begin()
        die(job)
    with working(queue, lambda job, request: {}):
        wait_until(lambda: state(queue, job_id) == "failed")
    error = view(queue, job_id).status.error
    assert error is not None
    assert error["code"] == "jobs.interrupted"


def test_many_threads_and_queues_draw_each_job_once(tmp_path: Path) -> None:
    ids = [add(JobQueue(tmp_path), owner) for owner in "abc" * 20]
    drawn: Counter[str] = Counter()
    lock = threading.Lock()

    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        with lock:
            drawn[job.status.id] += 1
        return {"id": job.status.id}

    with working(JobQueue(tmp_path), draw, 4), working(JobQueue(tmp_path), draw, 4):
        queue = JobQueue(tmp_path)
        wait_until(lambda: all(state(queue, job_id) == "done" for job_id in ids))
    assert drawn == Counter(ids)
    assert all(view(queue, job_id).status.result == {"id": job_id} for job_id in ids)


@pytest.mark.parametrize("error", [StoreFull("full"), StateUnwritable("read-only")])
def test_a_job_waits_for_a_full_disk_instead_of_failing(tmp_path: Path, error: Exception) -> None:
    queue, attempts = JobQueue(tmp_path), []

    def draw(job: TakenJob, request: JobRequest) -> dict[str, int]:
        attempts.append(job.status.id)
        if len(attempts) <= 10:
            raise error
        return {}

    job_id = add(queue)
    with working(queue, draw):
        wait_until(lambda: state(queue, job_id) == "done")
    assert len(attempts) == 11


def test_a_job_that_waits_for_a_full_disk_is_cancelled_at_once(tmp_path: Path) -> None:
    queue, attempts = JobQueue(tmp_path), []

    def draw(job: TakenJob, request: JobRequest) -> dict[str, int]:
        attempts.append(job.status.id)
        raise StoreFull("full")

    job_id = add(queue)
    with working(queue, draw, max_pause_s=60):
        wait_until(lambda: attempts)
        queue.cancel(job_id)
        wait_until(lambda: state(queue, job_id) == "cancelled")
    assert len(attempts) == 1


# --- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seed": 1}', "\x00" * 100])
def test_a_damaged_request_fails_its_job_and_the_others_go_on(tmp_path: Path, content: str) -> None:
    queue = JobQueue(tmp_path)
    damaged, sound = add(queue), add(queue)
    (tmp_path / "work" / damaged / "request.json").write_text(content)
    with working(queue, lambda job, request: {}):
        wait_until(lambda: [state(queue, job_id) for job_id in (damaged, sound)] == ["failed", "done"])
    error = view(queue, damaged).status.error
    assert error is not None
    assert error["code"] == "jobs.damaged"
    assert view(queue, damaged).status.owner == "ann"


def test_a_folder_that_was_deleted_fails_its_job(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    for path in (tmp_path / "work" / job_id).iterdir():
        path.unlink()
    (tmp_path / "work" / job_id).rmdir()
    with working(queue, lambda job, request: {}):
        wait_until(lambda: list((tmp_path / "queue").iterdir()) == [])
    assert state(queue, job_id) == "failed"


def test_a_damaged_status_is_moved_aside_and_the_job_is_drawn(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    path = tmp_path / "work" / job_id / "status.json"
    path.write_text('{"id": 5}')
    assert queue.get(job_id) is None
    assert list(path.parent.glob("status.json.*.corrupt"))
    with working(queue, lambda job, request: {"is": "there"}):
        wait_until(lambda: queue.get(job_id))
        wait_until(lambda: state(queue, job_id) == "done")
    assert view(queue, job_id).status.owner == "ann"


def test_other_files_in_the_folders_are_left_alone(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    add(queue)
    for folder in ("queue", "ended"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "README").write_text("mine")
    (tmp_path / "queue/000.folder").mkdir()
    assert draw_all(queue) == ["ann"]
    assert (tmp_path / "queue/README").exists()
    assert len(queue.page("ann", limit=10)[0]) == 1


def test_the_queue_may_be_deleted_while_it_is_used(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs")
    add(queue)
    os.rename(tmp_path / "jobs", tmp_path / "gone")
    assert queue.take() is None
    assert queue.page("ann", limit=10) == ([], False)
    queue.sweep()
    job_id = add(queue)
    assert take(queue).status.id == job_id


# --- cancelling ------------------------------------------------------------------------------------


def test_a_job_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    queue.cancel(job_id)
    assert state(queue, job_id) == "cancelled"
    assert queue.take() is None
    queue.cancel(job_id)
    assert state(queue, job_id) == "cancelled"


def test_a_job_that_is_drawn_is_told_also_by_another_process(tmp_path: Path) -> None:
    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        wait_until(job.is_cancel_requested)
        raise RequestCancelled("cancelled")

    queue, other = JobQueue(tmp_path), JobQueue(tmp_path)
    job_id = add(queue)
    with working(queue, draw):
        wait_until(lambda: state(other, job_id) == "running")
        other.cancel(job_id)
        wait_until(lambda: state(other, job_id) == "cancelled")
    assert view(queue, job_id).status.error is None


def test_a_job_that_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    take(queue).end("done", result={"is": "there"})
    queue.cancel(job_id)
    assert view(queue, job_id).status.result == {"is": "there"}


# --- errors ----------------------------------------------------------------------------------------


def test_the_log_has_no_value_of_a_request_that_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        raise InvalidValue("The prompt has 'a secret'.", param="prompt")

    queue = JobQueue(tmp_path)
    job_id = add(queue)
    with working(queue, draw):
        wait_until(lambda: state(queue, job_id) == "failed")
    assert "request.invalid_value" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_of_the_request_fails_it_at_once(tmp_path: Path) -> None:
    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        raise InvalidValue("wrong", param="size", allowed=[1])

    queue = JobQueue(tmp_path)
    job_id = add(queue)
    with working(queue, draw):
        wait_until(lambda: state(queue, job_id) == "failed")
    assert view(queue, job_id).status.error == {
        "code": "request.invalid_value",
        "message": "wrong",
        "param": "size",
        "details": {"allowed": [1]},
    }


def test_an_unexpected_error_fails_the_job_and_the_thread_goes_on(tmp_path: Path) -> None:
    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        if request.seed == 1:
            raise ZeroDivisionError
        return {}

    queue = JobQueue(tmp_path)
    bad, good = add(queue, seed=1), add(queue)
    with working(queue, draw):
        wait_until(lambda: state(queue, good) == "done")
    error = view(queue, bad).status.error
    assert error is not None
    assert error["code"] == "server.internal"


def test_an_engine_that_is_down_fails_no_job(tmp_path: Path) -> None:
    failures = [EngineUnreachable("down")] * 10

    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {}

    queue = JobQueue(tmp_path)
    job_id = add(queue)
    with working(queue, draw):
        wait_until(lambda: state(queue, job_id) == "done")
    assert view(queue, job_id).status.attempts == 1


def test_an_owner_that_must_wait_keeps_no_thread_from_the_others(tmp_path: Path) -> None:
    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        if request.owner == "ann":
            raise KeyLimitReached("tomorrow", retry_after_s=50_000)
        return {}

    queue = JobQueue(tmp_path)
    waiting = [add(queue, "ann") for _ in range(3)]
    others = [add(queue, "bob") for _ in range(3)]
    workers = JobWorkers(queue, draw, count=1)
    workers.start()
    wait_until(lambda: all(state(queue, job_id) == "done" for job_id in others))
    found = wait_until(
        lambda: [one for job_id in waiting if (one := view(queue, job_id)).progress is not None]
    )
    workers.stop(60)
    assert [state(queue, job_id) for job_id in waiting] == ["queued"] * 3
    assert found[0].progress is not None
    assert (found[0].progress[1]["waits_for"], found[0].status.attempts) == ("tomorrow", 0)


@pytest.mark.parametrize("several", [True, False])
def test_one_owner_leaves_a_thread_to_others_if_there_are_several(tmp_path: Path, several: bool) -> None:
    release, drawn = threading.Event(), []

    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        drawn.append(request.owner)
        if request.owner == "flood":
            assert release.wait(60)
        return {}

    queue = JobQueue(tmp_path)
    for _ in range(5):
        add(queue, "flood")
    with working(queue, draw, 3, has_several_owners=lambda: several):
        try:
            wait_until(lambda: drawn.count("flood") == (2 if several else 3))
            other = add(queue, "other")
            if several:
                wait_until(lambda: state(queue, other) == "done")
                assert drawn == ["flood", "flood", "other"]
        finally:
            release.set()
        wait_until(lambda: state(queue, other) == "done")


def test_another_error_that_may_pass_is_tried_three_times(tmp_path: Path) -> None:
    tries = []

    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        tries.append(job)
        raise JobInterrupted("interrupted")

    queue = JobQueue(tmp_path)
    job_id = add(queue)
    with working(queue, draw):
        wait_until(lambda: state(queue, job_id) == "failed")
    assert len(tries) == 3


def test_a_job_that_a_stopping_server_interrupts_is_put_back_and_does_not_count(tmp_path: Path) -> None:
    def draw(job: TakenJob, request: JobRequest) -> dict[str, Any]:
        raise ServerStopping("stopping")

    queue = JobQueue(tmp_path)
    job_id = add(queue)
    workers = JobWorkers(queue, draw, count=1)
    workers.start()
    wait_until(lambda: not any(thread.is_alive() for thread in workers._threads))
    assert (state(queue, job_id), view(queue, job_id).status.attempts) == ("queued", 0)
    assert take(queue).status.id == job_id


# --- what is kept ----------------------------------------------------------------------------------


def test_ended_jobs_are_kept_for_a_day(tmp_path: Path) -> None:
    clock = Clock()
    queue = JobQueue(tmp_path, clock=clock)
    job_id, waiting = add(queue), add(queue)
    take(queue).end("done")
    clock.now += MAX_AGE_S - 1
    queue.sweep()
    assert state(queue, job_id) == "done"
    clock.now += 2
    queue.sweep()
    assert queue.get(job_id) is None
    assert state(queue, waiting) == "queued"


def test_ended_jobs_are_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    clock = Clock()
    queue = JobQueue(tmp_path, clock=clock, max_ended=2)
    ids = [add(queue) for _ in range(4)]
    for _ in ids:
        clock.now += 1
        take(queue).end("done")
    queue.sweep()
    assert [queue.get(job_id) is not None for job_id in ids] == [False, False, True, True]


def test_a_clock_that_is_set_back_removes_nothing_and_keeps_nothing_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    queue = JobQueue(tmp_path, clock=clock)
    job_id = add(queue)
    take(queue).end("done")
    clock.now -= 30 * MAX_AGE_S
    queue.sweep()
    assert state(queue, job_id) == "done"
    clock.now += MAX_AGE_S + 1
    queue.sweep()
    assert queue.get(job_id) is None


def test_folders_that_killed_processes_left_are_removed_and_those_of_jobs_are_not(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    waiting, ended = add(queue), add(queue)
    queue.cancel(ended)
    orphans = [tmp_path / "work" / name for name in (".imgjob_1", "imgjob_" + "0" * 32)]
    for path in orphans:
        path.mkdir()
    for path in (tmp_path / "work").iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    queue.sweep()
    assert not any(path.exists() for path in orphans)
    assert [state(queue, waiting), state(queue, ended)] == ["queued", "cancelled"]


def test_jobs_are_listed_by_owner_the_latest_first_in_pages(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    ids = [add(queue, owner) for owner in "aabab"]
    take(queue).end("done")

    def page(owner: str | None, **options: Any) -> tuple[list[str], bool]:
        views, has_more = queue.page(owner, **options)
        return [one.status.id for one in views], has_more

    assert page("a", limit=10) == ([ids[3], ids[1], ids[0]], False)
    assert page(None, limit=2) == ([ids[4], ids[3]], True)
    assert page(None, limit=10, after=ids[3]) == ([ids[2], ids[1], ids[0]], False)
    with pytest.raises(ImageJobNotFound):
        page("a", limit=10, after=ids[2])


@pytest.mark.parametrize(
    "name", ["../../secret", "imgjob_", "imgjob_" + "g" * 32, "", ".", "imgjob_" + "0" * 33]
)
def test_what_is_no_id_is_no_job(tmp_path: Path, name: str) -> None:
    assert JobQueue(tmp_path).get(name) is None


def test_events_are_numbered_and_survive_a_process_that_was_killed_in_the_middle_of_one(
    tmp_path: Path,
) -> None:
    queue = JobQueue(tmp_path)
    job_id = add(queue)
    job = take(queue)
    job.begin()
    job.report("running", {})
    with (job.folder.path / "events.jsonl").open("a") as file:
        file.write('{"event": "prog')
    job.report("progress", {"progress": 0.5})
    assert [(number, name) for number, name, _ in queue.events(job_id)] == [(1, "running"), (3, "progress")]
    assert view(queue, job_id).progress == ("progress", {"progress": 0.5})
    job.end("done")
    assert view(queue, job_id).status.events == 3
