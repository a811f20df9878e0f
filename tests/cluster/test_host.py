"""What a host does with a job, without an engine."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import names
from cluster.host import Host
from cluster.job_documents import ResultDocument
from cluster.options import ClusterOptions
from cluster.placing import AssignedJob, WaitingJob
from cluster.sealing import Seal
from compiler import Catalogue
from errors import EngineRejected
from generation import JobResult
from tests.cluster.running_hosts import KEY, RedisServer
from tests.cluster.test_messages import document


class FailingRuns:
    """Notes what the engine would call the job, and draws nothing."""

    def __init__(self, prompt_ids: list[str]) -> None:
        self._prompt_ids = prompt_ids
        self.sessions = ()
        self.counts_waiting = True

    def results(self, jobs: Sequence[str], *_: Any, **__: Any) -> Generator[JobResult, None, None]:
        self._prompt_ids += jobs
        raise EngineRejected("It draws nothing.")
        yield


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
    options = ClusterOptions(server.url, KEY.encode(), "one")
    seal, prompt_ids = Seal(options.key), list[str]()
    sent = replace(document(shipped_catalogue), uploads=())
    job = WaitingJob(sent.id, 1, sent.compiled.plan.model, "", sent.front, attempt)
    client = server.client()
    client.set(names.front(sent.front), "1")
    client.set(names.job(sent.id), seal.close(names.job(sent.id), sent.as_json()))
    client.hset(names.ASSIGNED, sent.id, json.dumps(AssignedJob(job, "one", 0.0).as_json()))
    host = Host(
        options,
        cast(Any, None),
        lambda: shipped_catalogue,
        lambda *_: cast(Any, FailingRuns(prompt_ids)),
    )
    host.draw(sent.id, attempt, may_have_run=may_have_run)
    (prompt_id,) = prompt_ids
    assert (prompt_id != sent.id) is is_new
    found = client.get(names.result(sent.id))
    assert isinstance(found, bytes)
    result = ResultDocument.read(seal.open(names.result(sent.id), found))
    assert (result.attempt, result.host, result.error and result.error.code) == (
        attempt,
        "one",
        EngineRejected.code,
    )
    client.close()
