"""GET /api/events on a real server with two workers: many streams, an engine that must not notice them, and a stop."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sketch import SketchProcess
from tests.conftest import NODES
from tests.network_cable import NetworkCable
from tests.server.running import Server, running, stopped
from tests.waiting import wait_until


@pytest.fixture
def engine(catalogue_files: dict[str, list[str]]) -> Iterator[NetworkCable]:
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=100) as sketch,
        NetworkCable(sketch.url) as cable,
    ):
        yield cable


class Follower:
    """A client that follows the events in a thread."""

    def __init__(self, server: Server, **headers: str) -> None:
        self.events: list[tuple[str, Any]] = []
        self.last_id = ""
        self.has_ended = False
        self.response = requests.get(f"{server.url}/api/events", stream=True, timeout=60, headers=headers)
        assert self.response.status_code == 200
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        name = ""
        with contextlib.suppress(requests.RequestException, AttributeError, ValueError):
            for line in self.response.iter_lines(chunk_size=1, decode_unicode=True):
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    self.last_id = value
                elif field == "data":
                    self.events.append((name, json.loads(value)))
        self.has_ended = True

    def all(self, name: str) -> list[Any]:
        return [data for each, data in tuple(self.events) if each == name]

    def close(self) -> None:
        self.response.close()


def requests_in(engine: NetworkCable, seconds: float) -> int:
    before = engine.requests
    time.sleep(seconds)
    return engine.requests - before


def test_many_streams_ask_the_engine_nothing_more_than_one(tmp_path: Path, engine: NetworkCable) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=engine.url) as server:
        followers = [Follower(server)]
        wait_until(
            lambda: any(
                all(m["ready"] for m in s["models"]) for s in followers[0].all("status") if s["models"]
            )
        )
        of_one = requests_in(engine, 5)
        followers += [Follower(server) for _ in range(39)]
        wait_until(lambda: all(follower.all("status") for follower in followers))
        time.sleep(2)  # the other worker has checked the models, too
        of_many = requests_in(engine, 5)
        for follower in followers:
            follower.close()
    # At most one round of probes a second, whoever asks.
    assert of_many <= 1.5 * of_one + 5, (of_one, of_many)


def test_a_client_goes_on_in_another_worker(tmp_path: Path, engine: NetworkCable) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=engine.url) as server:
        first, second = server.workers()
        with stopped(second):
            here = Follower(server)
            wait_until(lambda: here.all("memory"))
            here.close()
        with stopped(first):
            there = Follower(server, **{"Last-Event-ID": here.last_id})
            wait_until(lambda: there.all("catalogue"))
            there.close()
        assert there.all("resync") == []
        assert there.all("memory")[0][: len(here.all("memory")[0])] == here.all("memory")[0]


def test_a_stop_ends_the_streams_at_once(tmp_path: Path, engine: NetworkCable) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=engine.url) as server:
        followers = [Follower(server) for _ in range(8)]
        wait_until(lambda: all(follower.all("status") for follower in followers))
        began_at = time.monotonic()
        server.process.terminate()
        wait_until(lambda: all(follower.has_ended for follower in followers))
        server.process.wait(60)
        # Streams that went on would hold the workers for 20 s.
        assert time.monotonic() - began_at < 15


def test_a_client_that_reads_nothing_keeps_no_one_from_a_thread(tmp_path: Path, engine: NetworkCable) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=engine.url, EASEL_WORKERS="1") as server:
        address = server.url.removeprefix("http://").split(":")
        silent = []
        for _ in range(8):
            connection = socket.create_connection((address[0], int(address[1])))
            connection.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            silent.append(connection)
        for _ in range(20):
            assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
        assert server.draw().status_code == 200
        for connection in silent:
            connection.close()
