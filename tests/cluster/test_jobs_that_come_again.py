"""A job that comes to a host again, after the process that had it was killed, is fetched if its engine has finished it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from compiler import SOCKET_OUTPUT, Catalogue
from sketch import SketchProcess
from tests.cluster.running_hosts import HostProcess, RedisServer, host, variables_of
from tests.cluster.test_hosts import digest, in_background
from tests.server.running import Server, running
from tests.waiting import wait_until

RENDER_MS = 3000
SLOW_MS = 12_000
"""Far longer than a new process takes to start on a busy machine"""


@dataclass
class Pair:
    """A front end and its only host, whose engine cannot send pictures over the WebSocket: it saves them."""

    redis: RedisServer
    front: Server
    engine: SketchProcess
    folder: Path

    def start_host(self) -> contextlib.AbstractContextManager[HostProcess]:
        return host("only", self.folder / "host", self.redis.url, EASEL_ENGINE_URL=self.engine.url)

    def wait_for_host(self) -> None:
        def is_ready() -> bool:
            entries = requests.get(f"{self.front.url}/api/comfyui/status", timeout=60).json()["engines"]
            return any(
                entry["name"] == "only" and entry["reachable"] and not entry["problem"] for entry in entries
            )

        wait_until(is_ready)

    def jobs(self) -> dict[str, Any]:
        """What the engine has finished."""
        found: dict[str, Any] = requests.get(f"{self.engine.url}/history", timeout=60).json()
        return found

    def is_drawing(self) -> bool:
        return bool(requests.get(f"{self.engine.url}/queue", timeout=60).json()["queue_running"])

    def freeze_until_ended(self, pid: int) -> None:
        """The process freezes while its job is drawn, until the engine has finished it: it has not fetched its picture."""
        before = self.jobs()
        wait_until(self.is_drawing)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: len(self.jobs()) > len(before))


@pytest.fixture
def pair(tmp_path: Path, shipped_catalogue: Catalogue, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Its parameter: how long the engine draws, in ms."""
    render_ms = getattr(request, "param", RENDER_MS)
    (tmp_path / "redis").mkdir()
    (tmp_path / "engine").mkdir()
    known = shipped_catalogue.nodes["nodes"]
    nodes = {
        **shipped_catalogue.nodes,
        "nodes": {name: known[name] for name in known if name != SOCKET_OUTPUT},
    }
    with contextlib.ExitStack() as stack:
        server = RedisServer(tmp_path / "redis")
        stack.callback(server.kill)
        engine = stack.enter_context(
            SketchProcess(
                nodes=nodes, files=shipped_catalogue.files, render_ms=render_ms, folder=tmp_path / "engine"
            )
        )
        front = stack.enter_context(running(tmp_path / "front", **variables_of(server.url)))
        yield Pair(server, front, engine, tmp_path)


FIELDS = {"model": "sdxl-turbo", "response_format": "b64_json"}


def test_a_picture_that_was_finished_for_a_killed_child_is_not_drawn_again(pair: Pair) -> None:
    with pair.start_host() as only:
        pair.wait_for_host()
        with in_background(pair.front, seed=71, **FIELDS) as found:
            wait_until(pair.is_drawing)
            child = only.child()
            pair.freeze_until_ended(child)
            os.kill(child, signal.SIGKILL)
        only.wait_for("it is not drawn again")
        assert len(pair.jobs()) == 1
        # Drawn for another request, it is the same picture.
        assert digest(found[0]) == digest(pair.front.draw(seed=71, **FIELDS))
        assert len(pair.jobs()) == 2


def test_a_picture_that_was_finished_for_a_killed_host_is_not_drawn_again_when_it_is_back(pair: Pair) -> None:
    with pair.start_host() as first:
        pair.wait_for_host()
        with in_background(pair.front, seed=72, **FIELDS) as found:
            wait_until(pair.is_drawing)
            pair.freeze_until_ended(first.child())
            first.kill()
            with pair.start_host() as second:
                second.wait_for("it is not drawn again")
                wait_until(lambda: found)
        assert found[0].status_code == 200, found[0].text
        assert len(pair.jobs()) == 1


@pytest.mark.parametrize("pair", [SLOW_MS], indirect=True)
def test_a_job_that_was_still_drawn_is_cancelled_and_drawn_again(pair: Pair) -> None:
    with pair.start_host() as only:
        pair.wait_for_host()
        with in_background(pair.front, seed=73, **FIELDS) as found:
            wait_until(pair.is_drawing)
            os.kill(only.child(), signal.SIGKILL)
        ends = sorted(job["status"]["status_str"] for job in pair.jobs().values())
        assert ends == ["error", "success"]
        assert digest(found[0]) == digest(pair.front.draw(seed=73, **FIELDS))


def test_a_picture_whose_file_is_gone_is_drawn_again(pair: Pair) -> None:
    with pair.start_host() as only:
        pair.wait_for_host()
        with in_background(pair.front, seed=74, **FIELDS) as found:
            wait_until(pair.is_drawing)
            child = only.child()
            pair.freeze_until_ended(child)
            ((_, job),) = pair.jobs().items()
            (picture,) = (pair.folder / "engine").rglob("*.png")
            picture.unlink()
            os.kill(child, signal.SIGKILL)
        assert job["status"]["status_str"] == "success"
        assert len(pair.jobs()) == 2
        assert digest(found[0]) == digest(pair.front.draw(seed=74, **FIELDS))
