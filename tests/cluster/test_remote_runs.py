"""The jobs of one request on hosts of this process, joined by a real Redis."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import names
from cluster.dispatcher import Dispatcher
from cluster.host_facts import KnownHosts
from cluster.job_documents import JobDocument, ResultDocument
from cluster.lost_jobs import LostJobs
from compiler import Catalogue
from errors import EngineRejected, EngineUnreachable
from generation import Uploads
from tests.cluster.hosts_in_process import Joined, joined_in_process
from tests.waiting import wait_until

IMAGE = os.urandom(3_500_000)
JOBS = ("a", "b", "c", "d")


@pytest.fixture
def joined(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Joined]:
    with joined_in_process(shipped_catalogue, tmp_path) as found:
        yield found


def uploads() -> Uploads:
    found = Uploads()
    found.add("image.png", IMAGE)
    return found


def draw_digest(document: JobDocument, uploads: Uploads) -> bytes:
    """A picture that shows which images the host got."""
    return hashlib.sha256(uploads.data("image.png")).digest()


def test_the_images_of_a_request_are_stored_once_for_all_of_its_jobs(joined: Joined) -> None:
    may_draw = threading.Event()

    def draw(document: JobDocument, uploads: Uploads) -> bytes:
        assert may_draw.wait(60)
        return draw_digest(document, uploads)

    joined.draw = draw
    joined.add_host("one")
    before = joined.received_bytes()
    results = joined.results(joined.compiled(len(JOBS)), uploads(), JOBS)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(each.outcome.pictures[0].data for each in results))
    thread.start()
    wait_until(lambda: len(joined.taken) == len(JOBS))
    stored = joined.keys("easel:upload:*")
    assert sum(joined.client.memory_usage(key) or 0 for key in stored) < 1.3 * len(IMAGE)
    assert len(stored) == 4  # parts of 1 MB
    may_draw.set()
    thread.join()
    assert joined.received_bytes() - before < 1.3 * len(IMAGE)
    assert found == [hashlib.sha256(IMAGE).digest()] * len(JOBS)
    wait_until(lambda: not joined.keys("easel:upload:*"))


@pytest.mark.parametrize("are_gone", [False, True])
def test_a_job_that_is_sent_again_stores_its_images_only_if_they_are_gone(
    joined: Joined, *, are_gone: bool
) -> None:
    before = 0

    def draw(document: JobDocument, uploads: Uploads) -> bytes:
        nonlocal before
        if len(joined.taken) == 1:
            if are_gone:
                joined.client.delete(joined.keys("easel:upload:*")[0])
            before = joined.received_bytes()
            raise EngineUnreachable("It has ended.")
        return draw_digest(document, uploads)

    joined.draw = draw
    joined.add_host("one")
    joined.add_host("two")
    (result,) = joined.results(joined.compiled(1), uploads(), ["a"])
    assert result.outcome.pictures[0].data == hashlib.sha256(IMAGE).digest()
    assert [attempt for _, attempt, _ in joined.taken] == [1, 2]
    assert (joined.received_bytes() - before > len(IMAGE)) is are_gone


def test_images_stay_while_their_request_waits(joined: Joined) -> None:
    results = joined.results(joined.compiled(1), uploads(), ["a"])
    thread = threading.Thread(target=lambda: list(results))
    thread.start()
    stored = wait_until(lambda: joined.keys("easel:upload:*"))
    wait_until(lambda: joined.client.hlen(names.WAITING))
    for key in (names.job("a"), *stored):
        joined.client.expire(key, 5)
    hosts = KnownHosts(joined.client, joined.seal)
    dispatcher = Dispatcher(
        joined.client, hosts, send=lambda *_: None, notify=lambda _: None, need_bytes=lambda _: 0
    )
    LostJobs(
        *(joined.client, joined.seal, hosts, dispatcher, joined.front.jobs), was_away_lately=lambda: False
    ).look()
    for key in (names.job("a"), *stored):
        assert joined.client.ttl(key) > 60
    joined.add_host("one")
    thread.join()


def test_an_end_that_is_told_twice_draws_no_job_of_several_again(joined: Joined) -> None:
    may_draw = threading.Event()

    def draw(document: JobDocument, uploads: Uploads) -> bytes:
        assert document.id == "a" or may_draw.wait(60)
        return document.id.encode()

    joined.draw = draw
    joined.add_host("one")
    pubsub = joined.client.pubsub()
    channel = names.channel(joined.front.jobs.front)
    pubsub.subscribe(channel)
    results = joined.results(joined.compiled(2), Uploads(), ["a", "b"])
    assert next(results).outcome.prompt_id == "a"
    wait_until(lambda: not joined.keys("easel:picture:a:*"))
    # The one who listens hears an end, and the one who looks finds the same in Redis.
    ended = wait_until(
        lambda: (
            (message := pubsub.get_message(ignore_subscribe_messages=True))
            and b'"kind":"ended"' in message["data"]
            and message["data"]
        )
    )
    inbox = joined.front.jobs.all()[0].inbox
    inbox.put(joined.seal.open(channel, ended))

    def draw_when_it_was_read() -> None:
        wait_until(inbox.empty)
        may_draw.set()

    threading.Thread(target=draw_when_it_was_read).start()
    assert next(results).outcome.prompt_id == "b"
    assert joined.taken == [("a", 1, "one"), ("b", 1, "one")]
    results.close()
    pubsub.close()


@pytest.mark.parametrize(("has_begun", "tries"), [(True, 3), (False, 10)])
def test_a_job_with_which_hosts_fail_is_not_given_to_all_of_them(
    joined: Joined, *, has_begun: bool, tries: int
) -> None:
    taken: list[tuple[str, int]] = []

    def fail(host: str, id: str, attempt: int) -> None:
        taken.append((host, attempt))
        error = EngineUnreachable("It has ended.")
        result = ResultDocument(attempt, host, error=error, is_hosts_fault=True, has_begun=has_begun)
        event = {"kind": "ended", "job": id, "attempt": attempt, "result": result.as_json()}
        joined.front.jobs.receive(event)

    joined.take = fail  # type: ignore[method-assign]
    for number in range(tries + 2):
        joined.add_host(f"host{number}")
    with pytest.raises(EngineUnreachable):
        list(joined.results(joined.compiled(1), Uploads(), ["a"]))
    assert [attempt for _, attempt in taken] == list(range(1, tries + 1))
    assert len({host for host, _ in taken}) == tries


@pytest.mark.parametrize(
    "event",
    [
        {
            "kind": "ended",
            "result": ResultDocument(0, "one", error=EngineRejected("It is not valid.")).as_json(),
        },
        {"kind": "lost", "attempt": 0, "host": "one"},
        {"kind": "lost", "attempt": 1, "host": "one", "by_host": True, "is_queued": True},
    ],
    ids=[
        "the failure of an earlier attempt",
        "an earlier loss",
        "a loss to the only host, which has the task",
    ],
)
def test_what_ends_no_job_and_sends_none_again(joined: Joined, event: dict[str, Any]) -> None:
    may_draw = threading.Event()

    def draw(document: JobDocument, uploads: Uploads) -> bytes:
        assert may_draw.wait(60)
        return b"drawn"

    joined.draw = draw
    joined.add_host("one")
    found: list[bytes] = []

    def wait_for_it() -> None:
        results = joined.results(joined.compiled(1), Uploads(), ["a"])
        found.extend(each.outcome.pictures[0].data for each in results)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    wait_until(lambda: joined.taken)
    inbox = joined.front.jobs.all()[0].inbox
    inbox.put({"job": "a", **event})
    inbox.put({"job": "a", "kind": "received"})
    wait_until(lambda: inbox.empty() or not thread.is_alive())
    may_draw.set()
    thread.join()
    assert found == [b"drawn"]
    assert joined.taken == [("a", 1, "one")]
