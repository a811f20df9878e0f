"""What somebody else has written into Redis keeps no front end from its work, and writes no lines into its log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import names
from cluster.abandoned import AbandonedJobs
from compiler import Catalogue
from errors import ClusterUnreachable
from generation import Uploads
from tests.cluster.hosts_in_process import MODEL, Joined, joined_in_process
from tests.cluster.test_lost_jobs import FRONT, Waiting
from tests.waiting import wait_until

EVIL = "evil\n2026-01-01 ERROR forged\x1b[2J"
ENTRY = {"number": 1, "model": MODEL, "flow": "", "front": FRONT, "attempt": 1, "avoided": []}


@pytest.fixture
def joined(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Joined]:
    with joined_in_process(shipped_catalogue, tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "easel:turns", "1"),
        ("SET", "easel:queues", "1"),
        ("SET", "easel:dispatch-wanted", "many"),
        ("LPUSH", "easel:dispatch-wanted", "1"),
        ("SET", "easel:dispatch", "1"),
        ("LPUSH", "easel:dispatch", "1"),
        ("SADD", "easel:hosts", b"\xff\xfe"),
        ("SADD", "easel:queues", b"\xff\xfe"),
        ("SADD", "easel:fronts", b"\xff\xfe"),
        ("HSET", "easel:turns", "a", "[1, NaN]"),
        ("HSET", "easel:waiting", "x", json.dumps({**ENTRY, "front": "\ud800"})),
        ("HSET", "easel:waiting", "x", json.dumps({**ENTRY, "flow": "\ud800"})),
        ("HSET", "easel:waiting", b"\xff", json.dumps(ENTRY)),
        ("HSET", "easel:assigned", "x", json.dumps({**ENTRY, "host": "one", "at": float("nan")})),
        ("HSET", "easel:assigned", "x", "5"),
    ],
)
def test_a_job_is_drawn_whatever_somebody_has_written(
    joined: Joined, command: tuple[str, str, str | bytes]
) -> None:
    joined.add_host("one")
    joined.client.execute_command(*command)  # type: ignore[no-untyped-call]
    (result,) = joined.results(joined.compiled(1), Uploads(), ["a"])
    assert result.outcome.pictures[0].data == b"a"
    waiting = Waiting(joined)
    waiting.look()
    waiting.known.forget_gone()
    assert not joined.client.sismember(names.HOSTS, b"\xff\xfe")
    assert not joined.client.sismember(names.FRONTS, b"\xff\xfe")
    assert waiting.known.read().keys() == {"one"}


@pytest.mark.parametrize("key", [names.host("zz"), names.seen("zz"), names.drained("zz")])
def test_a_host_whose_keys_hold_something_else_hides_no_other(joined: Joined, key: str) -> None:
    joined.add_host("one")
    joined.client.sadd(names.HOSTS, "zz")
    joined.client.lpush(key, "1")
    waiting = Waiting(joined)
    assert waiting.known.read().keys() == {"one"}
    assert ("zz" in waiting.known.unreadable) is (key == names.host("zz"))


def test_a_host_whose_queue_is_none_is_looked_after(joined: Joined) -> None:
    joined.add_host("one")
    waiting = Waiting(joined)
    waiting.send().sent_at -= 6
    joined.client.set(names.queue("one"), "1")
    assert [len(waiting.look()) for _ in range(4)] == [0, 0, 0, 1]


def test_what_celery_would_not_understand_keeps_no_other_host_from_being_forgotten(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    joined.client.set("unacked", "1")
    joined.client.sadd(names.HOSTS, "a", "b")
    waiting = Waiting(joined)
    for _ in range(3):
        waiting.known.forget_gone()
    assert [caplog.text.count(f"The host {name} cannot be forgotten") for name in "ab"] == [1, 1]
    joined.client.delete("unacked")
    waiting.known.forget_gone()
    assert joined.client.smembers(names.HOSTS) == set()


def use_all(joined: Joined) -> None:
    joined.front.hosts.load()
    list(joined.results(joined.compiled(1), Uploads(), ["a"]))


@pytest.mark.parametrize("key", [names.WAITING, names.ASSIGNED, names.HOSTS, names.NUMBER])
def test_without_what_is_needed_there_is_one_error_until_it_is_gone(joined: Joined, key: str) -> None:
    joined.add_host("one")
    wait_until(lambda: "one" in joined.front.hosts.known_hosts())
    joined.client.delete(key)
    joined.client.set(key, "x")
    message = r"A key of Easel in Redis holds something else; delete it\."
    with pytest.raises(ClusterUnreachable, match=message):
        use_all(joined)
    joined.client.delete(key)
    joined.client.sadd(names.HOSTS, "one")
    (result,) = joined.results(joined.compiled(1), Uploads(), ["b"])
    assert result.outcome.pictures[0].data == b"b"


def test_what_names_front_ends_that_were_none_is_removed(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    waiting, now = Waiting(joined), 0.0
    joined.client.sadd(names.FRONTS, "zz", EVIL, b"\xff\xfe\n")
    joined.client.set(names.jobs_of("zz"), "1")
    joined.client.sadd(names.jobs_of(EVIL), b"\xff", "x")
    abandoned = AbandonedJobs(joined.client, joined.seal, waiting.dispatcher, lambda: now)
    abandoned.forget(waiting.dispatcher.situation())
    now += 3
    abandoned.forget(waiting.dispatcher.situation())
    assert joined.client.smembers(names.FRONTS) == set()
    assert joined.keys("easel:jobs-of:*") == []
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(message.isprintable() for message in messages)


def test_a_job_whose_entry_was_overwritten_is_removed(joined: Joined) -> None:
    waiting = Waiting(joined)
    for entry in ("no JSON", "5", "null", '{"attempt": 1}', "[" * 2000 + "]" * 2000):
        joined.client.hset(names.ASSIGNED, "x", entry)
        waiting.dispatcher.remove("x", 1)
        assert joined.client.hgetall(names.ASSIGNED) == {}
    joined.client.hset(names.ASSIGNED, "x", '{"attempt": 2}')
    waiting.dispatcher.remove("x", 1)
    assert joined.client.hlen(names.ASSIGNED) == 1


def test_names_in_redis_write_no_lines_of_their_own_into_the_log(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "easel.cluster")
    joined.client.sadd(names.HOSTS, EVIL, "x" * 100_000, b"\xff\n", f"{EVIL} gone")
    for name in (EVIL, "x" * 100_000):
        joined.client.set(names.host(name), "x")
    joined.client.hset(names.WAITING, EVIL, "x")
    assert joined.front.jobs.all() == []  # it has started
    wait_until(lambda: caplog.text.count("It draws nothing for this machine") == 2)
    wait_until(lambda: "has not been there lately" in caplog.text)
    wait_until(lambda: "is no name of a host" in caplog.text)
    messages = [record.getMessage() for record in caplog.records]
    assert all(message.isprintable() and len(message) < 500 for message in messages)
    assert r"evil\n2026-01-01 ERROR forged\x1b[2J gone is forgotten" in caplog.text
