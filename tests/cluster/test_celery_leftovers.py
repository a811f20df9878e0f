"""What Celery keeps in Redis for a host that has ended, with real processes of hosts."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import names
from cluster.celery_app import task_sender
from cluster.front import Front
from cluster.host_facts import KnownHosts
from cluster.remote_runs import ClusterHosts
from compiler import Catalogue
from generation import Uploads
from sketch import SketchProcess
from tests.cluster.hosts_in_process import Joined, joined_in_process
from tests.cluster.running_hosts import host
from tests.waiting import wait_until


@pytest.fixture
def joined(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Joined]:
    """Whose tasks go through Celery."""
    with joined_in_process(shipped_catalogue, tmp_path) as found:
        found.front = Front(found.options, task_sender(found.options))
        found.hosts = ClusterHosts(found.front, *found.of_hosts)
        yield found


def kept(joined: Joined) -> str:
    """All of Celery's keys with what is in them."""
    client = joined.client
    read: dict[bytes, Callable[[Any], Any]] = {
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"list": lambda key: client.lrange(key, 0, -1),
    }
    keys = [key for key in joined.keys("*") if not key.startswith(names.PREFIX.encode())]
    return repr({key: read[client.type(key)](key) for key in keys})


def test_what_celery_keeps_for_a_host_goes_an_hour_after_its_end_and_comes_with_it_again(
    joined: Joined, tmp_path: Path, shipped_catalogue: Catalogue
) -> None:
    known = KnownHosts(joined.client, joined.seal)

    def is_ready(name: str) -> bool:
        found = known.read().get(name)
        return bool(found and found.can_draw)

    def an_hour_later(name: str) -> None:
        wait_until(lambda: name not in known.read())
        joined.client.delete(names.seen(name))

    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(
            SketchProcess(nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=600_000)
        )
        slow = stack.enter_context(
            host("slow", tmp_path / "slow", joined.server.url, EASEL_ENGINE_URL=engine.url)
        )
        quick = stack.enter_context(host("quick", tmp_path / "quick", joined.server.url))
        wait_until(lambda: is_ready("slow"))
        wait_until(lambda: is_ready("quick"))
        joined.client.set(names.drained("quick"), "1")
        found: list[str] = []
        results = joined.results(joined.compiled(1), Uploads(), [str(uuid.uuid4())])
        thread = threading.Thread(target=lambda: found.extend(each.session.name for each in results))
        thread.start()
        wait_until(lambda: joined.client.hlen("unacked"))
        slow.kill()
        joined.client.lpush(names.queue("slow"), "{}")
        wait_until(lambda: "slow" not in known.read())
        before = kept(joined)
        known.forget_gone()
        assert kept(joined) == before
        assert "easel@slow.celery.pidbox" in before

        an_hour_later("slow")
        known.forget_gone()
        assert "slow" not in kept(joined)
        assert "easel@quick.celery.pidbox" in kept(joined)
        assert joined.client.exists("_kombu.binding.gpu.quick")
        joined.client.delete(names.drained("quick"))
        thread.join()
        assert found == ["quick"]

        quick.stop()
        an_hour_later("quick")
        known.forget_gone()
        assert "quick" not in kept(joined)
        assert joined.client.sunion([names.HOSTS, names.QUEUES]) == set()

        stack.enter_context(host("quick", tmp_path / "quick", joined.server.url))
        wait_until(lambda: is_ready("quick"))
        (again,) = joined.results(joined.compiled(1), Uploads(), [str(uuid.uuid4())])
        assert again.session.name == "quick"
