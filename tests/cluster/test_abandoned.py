"""What a process that was killed leaves in Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from cluster import names
from cluster.abandoned import AbandonedJobs
from cluster.input_images import InputImages
from cluster.sent_jobs import SentJobs
from compiler import Catalogue
from generation import Uploads
from tests.cluster.hosts_in_process import Joined, joined_in_process
from tests.cluster.test_lost_jobs import Waiting
from tests.waiting import wait_until


@pytest.fixture
def joined(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Joined]:
    with joined_in_process(shipped_catalogue, tmp_path) as found:
        yield found


def send(joined: Joined, waiting: Waiting, front: str, jobs: list[str]) -> None:
    """As a process does that waits for jobs of one request with an image."""
    joined.client.set(names.front(front), "1")
    joined.client.sadd(names.FRONTS, front)
    uploads = Uploads()
    uploads.add("image.png", os.urandom(1_500_000))
    images = InputImages(front, "request", uploads)
    sent = SentJobs(front, joined.client, joined.seal, waiting.dispatcher, lambda: None)
    for id in jobs:
        document = replace(waiting.document, id=id, front=front, request_id="request", uploads=images.entries)
        sent.send(document, images, SimpleQueue())


def test_jobs_images_and_pictures_of_a_process_that_was_killed_are_deleted_and_no_others(
    joined: Joined,
) -> None:
    waiting, now = Waiting(joined), 0.0
    joined.draw = lambda document, uploads: os.urandom(2_500_000)
    joined.add_host("one", is_checking=False)
    send(joined, waiting, "killed", ["drawn", "drawn too"])
    for id in ("drawn", "drawn too"):
        joined.take("one", id, 1)
    wait_until(lambda: len(joined.keys("easel:result:*")) == 2)
    joined.client.set(names.drained("one"), "1")
    waiting.known.read()
    send(joined, waiting, "alive", ["other"])
    others = set(joined.keys("easel:*other*")) | set(joined.keys("easel:upload:alive:*"))
    send(joined, waiting, "killed", ["waits"])
    assert len(joined.keys("easel:picture:*")) == 6
    assert len(joined.keys("easel:upload:killed:*")) == 2

    joined.client.delete(names.front("killed"))
    abandoned = AbandonedJobs(joined.client, joined.seal, waiting.dispatcher, lambda: now)
    abandoned.forget(waiting.dispatcher.situation())
    assert [job.id for job in waiting.dispatcher.situation().waiting] == ["other"]
    now += 2.9
    abandoned.forget(waiting.dispatcher.situation())
    assert joined.keys("easel:picture:*")  # a host may be storing something yet
    now += 0.2
    abandoned.forget(waiting.dispatcher.situation())
    left = [*joined.keys("easel:picture:*"), *joined.keys("easel:result:*"), *joined.keys("easel:last:*")]
    left += [*joined.keys("*killed*"), *joined.keys("easel:job:drawn*"), *joined.keys("easel:job:waits")]
    assert left == []
    assert joined.client.smembers(names.FRONTS) == {b"alive"}
    assert set(joined.keys("easel:*other*")) | set(joined.keys("easel:upload:alive:*")) == others


def test_a_process_that_was_killed_cannot_have_the_jobs_of_another_one_deleted(joined: Joined) -> None:
    waiting, now = Waiting(joined), 0.0
    send(joined, waiting, "alive", ["other"])
    joined.client.sadd(names.FRONTS, "killed")
    joined.client.sadd(names.jobs_of("killed"), "other")
    kept = {names.job("other").encode(), *joined.keys("easel:upload:alive:*")}
    abandoned = AbandonedJobs(joined.client, joined.seal, waiting.dispatcher, lambda: now)
    abandoned.forget(waiting.dispatcher.situation())
    now += 3.1
    abandoned.forget(waiting.dispatcher.situation())
    assert joined.client.smembers(names.FRONTS) == {b"alive"}
    assert len(kept) == 3
    assert joined.client.exists(*kept) == 3
