"""What a process that waits for jobs finds when it looks after them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from cluster import names
from cluster.dispatcher import Dispatcher
from cluster.host_facts import KnownHosts
from cluster.input_images import InputImages
from cluster.lost_jobs import LostJobs
from cluster.placing import AssignedJob, WaitingJob
from cluster.sent_jobs import SentJob, SentJobs
from compiler import Catalogue
from generation import Uploads
from tests.cluster.hosts_in_process import MODEL, Joined, joined_in_process
from tests.cluster.test_messages import document

FRONT = "front"
LOST = {"kind": "lost", "job": "j", "attempt": 1, "host": "one"}


class Waiting:
    """The side that waits, without its threads, and a job that the host `one` has taken."""

    def __init__(self, joined: Joined) -> None:
        self.joined, self.client = joined, joined.client
        self.inbox: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self.was_away = False
        self.known = KnownHosts(self.client, joined.seal)
        dispatcher = Dispatcher(
            self.client, self.known, send=lambda *_: None, notify=self._sent, need_bytes=lambda _: 0
        )
        self.dispatcher = dispatcher
        self._jobs = SentJobs(FRONT, self.client, joined.seal, dispatcher, lambda: None)
        self._lost_jobs = LostJobs(
            *(self.client, joined.seal, self.known, dispatcher, self._jobs, lambda: self.was_away)
        )
        self.client.set(names.front(FRONT), "1")
        job = document(joined.catalogue)
        plan = replace(job.compiled.plan, model=MODEL, values={})
        self.document = replace(job, front=FRONT, compiled=replace(job.compiled, plan=plan), uploads=())

    def _sent(self, sent: AssignedJob) -> None:
        event = {"kind": "sent", "job": sent.job.id, "attempt": sent.job.attempt, "host": sent.host}
        self._jobs.receive({**event, "instance": self.known.last[sent.host].instance})

    def send(self) -> SentJob:
        job = self._jobs.send(self.document, InputImages(FRONT, "r", Uploads()), self.inbox)
        assert [event["kind"] for event in self.events()] == ["sent"]
        return job

    def send_and_take(self) -> None:
        self.send()
        self._jobs.receive({"kind": "received", "job": self.document.id, "attempt": 1})
        assert [event["kind"] for event in self.events()] == ["received"]

    def send_waiting(self) -> str:
        """A job for which there is no host; returns its id."""
        job = replace(self.document, id=str(uuid.uuid4()))
        self._jobs.send(job, InputImages(FRONT, "r", Uploads()), self.inbox)
        return job.id

    def place_of(self, id: str) -> int:
        return self._jobs.place_of(next(job for job in self._jobs.all() if job.id == id))

    def commands(self) -> int:
        """How many Redis has processed, without this question."""
        found: Any = self.client.info("stats")
        return int(found["total_commands_processed"])

    def look(self) -> list[Mapping[str, Any]]:
        self.known.read()
        self._lost_jobs.look()
        return self.events()

    def change_host(self, **values: Any) -> None:
        """What the host `one` says of itself from now on."""
        host = self.joined.add_host("one")
        key = names.host("one")
        self.client.set(key, self.joined.seal.close(key, {**host.as_json(), **values}))

    def events(self) -> list[Mapping[str, Any]]:
        found = []
        while not self.inbox.empty():
            found.append(self.inbox.get())
        return found


@pytest.fixture
def waiting(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Waiting]:
    with joined_in_process(shipped_catalogue, tmp_path) as joined:
        yield Waiting(joined)


@pytest.mark.parametrize(
    ("held", "holds", "was_away", "is_lost"),
    [
        (b"1", True, False, False),
        (None, True, False, True),
        (b"2", True, False, True),
        (b"nonsense", True, False, True),
        (None, False, False, False),  # an older Easel
        (None, True, True, False),
    ],
)
def test_a_job_that_its_host_took_and_does_not_hold_is_lost_there_after_some_looks(
    waiting: Waiting, *, held: bytes | None, holds: bool, was_away: bool, is_lost: bool
) -> None:
    waiting.joined.add_host("one", holds=holds)
    waiting.was_away = was_away
    waiting.send_and_take()
    if held is not None:
        waiting.client.set(names.held(waiting.document.id), held)
    assert [waiting.look() for _ in range(3)] == [[], [], []]
    lost = {**LOST, "by_host": True, "is_queued": False}
    assert waiting.look() == ([lost] if is_lost else [])


def test_a_job_that_is_held_again_was_not_lost(waiting: Waiting) -> None:
    waiting.joined.add_host("one")
    waiting.send_and_take()
    for _ in range(2):
        assert [waiting.look() for _ in range(3)] == [[], [], []]
        waiting.client.set(names.held(waiting.document.id), "1")
        assert waiting.look() == []
        waiting.client.delete(names.held(waiting.document.id))


def test_the_places_of_waiting_jobs_are_read_once_for_all(waiting: Waiting) -> None:
    """Each of hundreds of waiting clients is told its place once a second."""
    ids = [waiting.send_waiting() for _ in range(3)]
    waiting.look()
    before = waiting.commands()
    assert [waiting.place_of(id) for id in ids] == [0, 1, 2]
    assert waiting.commands() == before + 1


def test_a_job_that_came_after_the_last_look_has_no_known_place(waiting: Waiting) -> None:
    waiting.send_waiting()
    waiting.look()
    assert waiting.place_of(waiting.send_waiting()) == 0


@pytest.mark.parametrize(
    ("is_queued", "is_busy", "holds", "is_lost"),
    [
        (False, False, True, True),
        (False, True, True, True),
        (True, True, True, False),
        (True, False, True, True),  # the process that would take it is stopped
        (True, False, False, False),  # an older Easel does not say whether it is busy
    ],
)
def test_a_job_that_its_host_does_not_take_is_lost_unless_the_host_draws_others_before_it(
    waiting: Waiting, *, is_queued: bool, is_busy: bool, holds: bool, is_lost: bool
) -> None:
    waiting.joined.add_host("one", holds=holds)
    waiting.send().sent_at -= 6
    if is_queued:
        waiting.client.lpush(names.queue("one"), "task")
    other = AssignedJob(WaitingJob("other", 1, MODEL, "", FRONT), "one", 0.0)
    waiting.client.set(names.front("another"), "1")
    entry = {**other.as_json(), "front": "another"}
    waiting.client.hset(names.ASSIGNED, "other", json.dumps(entry))
    if is_busy:
        waiting.client.set(names.held("other"), "1")
    assert [waiting.look() for _ in range(3)] == [[], [], []]
    assert waiting.look() == ([{**LOST, "by_host": True, "is_queued": is_queued}] if is_lost else [])


def entry(id: str, front: str, host: str | None = None) -> str:
    """Of a job in the queue, or with a host."""
    job = WaitingJob(id, 1, MODEL, "", front)
    return json.dumps(job.as_json() if host is None else AssignedJob(job, host, 0.0).as_json())


def test_jobs_of_this_process_that_have_ended_are_taken_out_of_the_queue(waiting: Waiting) -> None:
    """Whoever has put them back did not hear of their end."""
    waiting.client.set(names.front("another"), "1")
    for front in (FRONT, "another"):
        waiting.client.hset(names.WAITING, f"waits of {front}", entry("", front))
        waiting.client.hset(names.ASSIGNED, f"sent of {front}", entry("", front, "one"))
    waiting.send_waiting()
    waiting.look()
    found = waiting.dispatcher.situation().waiting
    assert sorted(job.front for job in found) == sorted(["another", FRONT])  # Redis keeps no order in a hash
    assert waiting.client.hkeys(names.ASSIGNED) == [b"sent of another"]


def test_jobs_of_others_are_not_given_up_while_redis_was_away_lately(waiting: Waiting) -> None:
    """Nobody could say that it is there."""
    waiting.client.hset(names.WAITING, "job", entry("job", "another"))
    waiting.was_away = True
    waiting.look()
    assert waiting.client.hkeys(names.WAITING) == [b"job"]
    waiting.was_away = False
    waiting.look()
    assert waiting.client.hkeys(names.WAITING) == []


def test_a_host_that_is_not_there_has_lost_its_job_unless_redis_was_away_lately(waiting: Waiting) -> None:
    waiting.joined.add_host("one")
    waiting.send()
    waiting.client.delete(names.host("one"))
    waiting.was_away = True
    assert waiting.look() == []
    waiting.was_away = False
    assert waiting.look() == [{**LOST, "by_host": False, "is_queued": False}]


def test_a_host_that_was_started_again_has_lost_its_job(waiting: Waiting) -> None:
    waiting.joined.add_host("one")
    waiting.send_and_take()
    waiting.client.set(names.held(waiting.document.id), "1")
    assert waiting.look() == []
    waiting.change_host(instance="another")
    assert waiting.look() == [{**LOST, "by_host": False, "is_queued": False}]


@pytest.mark.parametrize("was_received", [False, True])
def test_a_host_that_stops_takes_no_job_and_ends_the_one_that_it_has(
    waiting: Waiting, *, was_received: bool
) -> None:
    waiting.joined.add_host("one")
    waiting.send().was_received = was_received
    waiting.client.set(names.held(waiting.document.id), "1")
    waiting.change_host(problem=["server.stopping", "It is stopping."])
    assert waiting.look() == ([] if was_received else [{**LOST, "by_host": False, "is_queued": False}])
