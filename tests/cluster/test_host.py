"""What a host does with a job, without an engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import names
from cluster.host import Host
from cluster.job_documents import ResultDocument
from cluster.job_watch import HELD_S
from cluster.options import ClusterOptions
from cluster.placing import AssignedJob, WaitingJob
from cluster.sealing import Seal
from compiler import Catalogue
from errors import EngineRejected, JobLost
from generation import JobResult
from tests.cluster.running_hosts import KEY, RedisServer
from tests.cluster.test_messages import document
from tests.waiting import wait_until


class FailingRuns:
    """Notes what the engine would call the job and for which ids it was asked, and draws nothing."""

    def __init__(self, prompt_ids: list[str], asked: list[tuple[str, ...]]) -> None:
        self._prompt_ids, self._asked = prompt_ids, asked
        self.sessions = ()
        self.counts_waiting = True

    def ended(self, prompt_ids: Sequence[str]) -> None:
        self._asked.append(tuple(prompt_ids))

    def results(self, jobs: Sequence[str], *_: Any, **__: Any) -> Generator[JobResult, None, None]:
        self._prompt_ids += jobs
        raise EngineRejected("It draws nothing.")
        yield


class Drawing:
    """A host without an engine, and a job that it is to draw."""

    def __init__(self, server: RedisServer, catalogue: Catalogue) -> None:
        self.options = ClusterOptions(server.url, KEY.encode(), "one")
        self.seal, self.client = Seal(self.options.key), server.client()
        self.prompt_ids, self.asked = list[str](), list[tuple[str, ...]]()
        self.job = replace(document(catalogue), uploads=())
        self.host = Host(
            self.options, lambda: catalogue, lambda *_: cast(Any, FailingRuns(self.prompt_ids, self.asked))
        )

    def draw(self, attempt: int, *, may_have_run: bool) -> ResultDocument:
        sent, client, seal = self.job, self.client, self.seal
        job = WaitingJob(sent.id, 1, sent.compiled.plan.model, "", sent.front, attempt)
        client.set(names.front(sent.front), "1")
        client.set(names.job(sent.id), seal.close(names.job(sent.id), sent.as_json()))
        client.hset(names.ASSIGNED, sent.id, json.dumps(AssignedJob(job, "one", 0.0).as_json()))
        self.host.draw(sent.id, attempt, may_have_run=may_have_run)
        found = client.get(names.result(sent.id))
        assert isinstance(found, bytes)
        return ResultDocument.read(seal.open(names.result(sent.id), found))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    found = RedisServer(tmp_path)
    try:
        yield found
    finally:
        found.kill()


@pytest.mark.parametrize(
    ("attempt", "may_have_run", "is_new"), [(1, False, False), (1, True, True), (2, False, True)]
)
def test_what_a_killed_process_left_in_the_engine_is_not_taken_for_the_new_run(
    server: RedisServer, shipped_catalogue: Catalogue, attempt: int, may_have_run: bool, is_new: bool
) -> None:
    """The arbiter cancels the job of a killed process by its id, and ComfyUI's history keeps how that one ended."""
    drawing = Drawing(server, shipped_catalogue)
    result = drawing.draw(attempt, may_have_run=may_have_run)
    (prompt_id,) = drawing.prompt_ids
    assert (prompt_id != drawing.job.id) is is_new
    assert drawing.asked == ([(drawing.job.id,)] if is_new else [])
    assert (result.attempt, result.host, result.error and result.error.code) == (
        attempt,
        "one",
        EngineRejected.code,
    )
    drawing.client.close()


def test_each_later_run_is_asked_for_by_the_next_process(
    server: RedisServer, shipped_catalogue: Catalogue
) -> None:
    drawing = Drawing(server, shipped_catalogue)
    job, used = drawing.job.id, drawing.prompt_ids
    for attempt, may_have_run in ((1, False), (1, True), (2, False), (2, True)):
        drawing.draw(attempt, may_have_run=may_have_run)
    assert drawing.asked == [(job,), (job, used[1]), (job, used[1], used[2])]
    assert len(set(used)) == 4
    key = names.prompts(job, "one")
    assert 0 < drawing.client.ttl(key) <= drawing.job.timeout_s + 60
    for forged in (
        b"{}",
        drawing.seal.close("another", {"ids": []}),
        drawing.seal.close(key, {"ids": ["x"]}),
    ):
        drawing.client.set(key, forged)
        drawing.draw(3, may_have_run=True)
        assert drawing.asked[-1] == (job,)
    drawing.client.close()


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_job_whose_process_ended_three_times_is_left_to_another_host(
    server: RedisServer, shipped_catalogue: Catalogue, attempt: int
) -> None:
    """As if the process was killed each time: Celery would give the job to the next one until its time is over."""
    drawing = Drawing(server, shipped_catalogue)
    found = [drawing.draw(attempt, may_have_run=again) for again in (False, True, True)]
    assert {result.error and result.error.code for result in found} == {EngineRejected.code}
    assert len(set(drawing.prompt_ids)) == 3
    drawing.asked.clear()
    for _ in range(2):
        result = drawing.draw(attempt, may_have_run=True)
        assert (result.error and result.error.code, result.is_hosts_fault, result.has_begun) == (
            JobLost.code,
            True,
            True,
        )
        assert (result.attempt, result.host) == (attempt, "one")
    assert len(drawing.prompt_ids) == 3
    assert set(drawing.prompt_ids) <= set(drawing.asked[0])  # one of them may have ended well
    drawing.client.close()


class WaitingRuns(FailingRuns):
    """Waits for its end before it fails."""

    def __init__(self, ends: threading.Event) -> None:
        super().__init__([], [])
        self._ends = ends

    def results(self, jobs: Sequence[str], *values: Any, **named: Any) -> Generator[JobResult, None, None]:
        self._ends.wait(60)
        yield from super().results(jobs, *values, **named)


def test_a_host_says_that_it_has_a_job_until_its_result_is_stored(
    server: RedisServer, shipped_catalogue: Catalogue
) -> None:
    ends, drawing = threading.Event(), Drawing(server, shipped_catalogue)
    drawing.host = Host(drawing.options, lambda: shipped_catalogue, lambda *_: cast(Any, WaitingRuns(ends)))
    key, client = names.held(drawing.job.id), drawing.client
    thread = threading.Thread(target=drawing.draw, args=(3,), kwargs={"may_have_run": False})
    thread.start()
    wait_until(lambda: client.get(key) == b"3")
    assert 0 < client.pttl(key) <= HELD_S * 1000
    client.delete(key)
    wait_until(lambda: client.get(key) == b"3")
    with server.client().monitor() as monitor:  # type: ignore[no-untyped-call]
        ends.set()
        commands = list[str]()
        while not commands or not (commands[-1].startswith("EVAL") and key in commands[-1]):
            commands.append(monitor.next_command()["command"])
    thread.join()
    assert [command for command in commands if command.startswith(f"SET {names.result(drawing.job.id)} ")]
    assert not client.exists(key)
    client.close()


def test_a_host_that_lost_a_job_to_another_does_not_say_that_it_has_it(
    server: RedisServer, shipped_catalogue: Catalogue
) -> None:
    ends, drawing = threading.Event(), Drawing(server, shipped_catalogue)
    drawing.host = Host(drawing.options, lambda: shipped_catalogue, lambda *_: cast(Any, WaitingRuns(ends)))
    key, client, sent = names.held(drawing.job.id), drawing.client, drawing.job
    thread = threading.Thread(target=drawing.draw, args=(1,), kwargs={"may_have_run": False})
    thread.start()
    wait_until(lambda: client.get(key) == b"1")
    job = WaitingJob(sent.id, 1, sent.compiled.plan.model, "", sent.front, 2)
    client.hset(names.ASSIGNED, sent.id, json.dumps(AssignedJob(job, "two", 0.0).as_json()))
    client.set(key, "2", ex=60)
    time.sleep(2)
    assert client.get(key) == b"2"
    ends.set()
    thread.join()
    assert client.get(key) == b"2"
    client.close()
