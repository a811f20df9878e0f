"""LLMs on the GPU of a host: its arbiter unloads them before it draws for others, and loads them again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from compiler import Catalogue
from sketch import SketchProcess
from tests.cluster.running_hosts import HostProcess, RedisServer, host, variables_of
from tests.cluster.test_hosts import digest, in_background
from tests.llm.fake_servers import FakeLlamaServer
from tests.server.running import Server, running
from tests.waiting import wait_until

FIELDS = {"model": "sdxl-turbo", "response_format": "b64_json"}
BOTH = ["chat", "embed"]


@dataclass
class Sharing:
    redis: RedisServer
    front: Server
    engine: SketchProcess
    llama: FakeLlamaServer
    folder: Path

    def host(self, **variables: str) -> contextlib.AbstractContextManager[HostProcess]:
        stack = {"name": "chat", "driver": "llama-server", "url": self.llama.url, "load_s": 5}
        settings = {
            "EASEL_ENGINE_URL": self.engine.url,
            "EASEL_LLM_STACKS": json.dumps([stack]),
            "EASEL_GPU_MIN_STAY_S": "0",
            "EASEL_GPU_LINGER_S": "1",
        }
        return host("sharing", self.folder / "host", self.redis.url, **{**settings, **variables})

    def wait_for_host(self) -> None:
        wait_until(lambda: requests.get(f"{self.front.url}/ready", timeout=60).status_code == 200)

    def loaded(self) -> list[str]:
        return sorted(self.llama.loaded())

    def is_drawing(self) -> bool:
        return bool(requests.get(f"{self.engine.url}/queue", timeout=60).json()["queue_running"])


@pytest.fixture
def sharing(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Sharing]:
    (tmp_path / "redis").mkdir()
    with contextlib.ExitStack() as stack:
        server = RedisServer(tmp_path / "redis")
        stack.callback(server.kill)
        engine = stack.enter_context(
            SketchProcess(nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=4000)
        )
        llama = stack.enter_context(FakeLlamaServer())
        front = stack.enter_context(running(tmp_path / "front", **variables_of(server.url)))
        yield Sharing(server, front, engine, llama, tmp_path)


def test_a_picture_of_a_front_end_takes_the_gpu_from_the_llms_and_gives_it_back(sharing: Sharing) -> None:
    with sharing.host():
        sharing.wait_for_host()
        assert sharing.loaded() == BOTH
        with in_background(sharing.front, seed=91, **FIELDS) as found:
            wait_until(sharing.is_drawing)
            assert sharing.loaded() == []
        assert found[0].status_code == 200, found[0].text
        wait_until(lambda: sharing.loaded() == BOTH)


def test_the_llms_come_back_after_a_host_that_was_killed_while_it_drew(sharing: Sharing) -> None:
    with sharing.host() as first:
        sharing.wait_for_host()
        with in_background(sharing.front, seed=92, **FIELDS) as found:
            wait_until(sharing.is_drawing)
            first.kill()
            assert sharing.loaded() == []
            with sharing.host():
                wait_until(lambda: found)
                assert found[0].status_code == 200, found[0].text
                wait_until(lambda: sharing.loaded() == BOTH)
                assert digest(found[0]) == digest(sharing.front.draw(seed=92, **FIELDS))


def test_the_llms_come_back_after_a_child_that_was_killed_while_it_drew(sharing: Sharing) -> None:
    with sharing.host() as only:
        sharing.wait_for_host()
        with in_background(sharing.front, seed=93, **FIELDS) as found:
            wait_until(sharing.is_drawing)
            os.kill(only.child(), signal.SIGKILL)
        assert found[0].status_code == 200, found[0].text
        wait_until(lambda: sharing.loaded() == BOTH)


def test_a_host_that_ends_finishes_its_picture_and_gives_the_gpu_back(sharing: Sharing) -> None:
    # It would keep the GPU for an hour.
    with sharing.host(EASEL_GPU_LINGER_S="3600") as only:
        sharing.wait_for_host()
        with in_background(sharing.front, seed=94, **FIELDS) as found:
            wait_until(sharing.is_drawing)
            only.process.send_signal(signal.SIGTERM)
        assert found[0].status_code == 200, found[0].text
        only.process.wait(60)
        assert sharing.loaded() == BOTH
