"""Many streams at once: beside pictures, beyond the limit, when the server stops, and when a worker is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from sketch import SketchProcess
from tests.conftest import NODES
from tests.conversation.upstream import Exchange, Upstream, upstream
from tests.llm.fake_servers import FakeLlamaServer
from tests.server.running import Server, running
from tests.waiting import TIMEOUT_S, wait_until

STREAMS, PICTURES = 128, 32
FIRST, DONE = b"data: 1\n\n", b"data: [DONE]\n\n"
JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"model": "tiny", "stream": True}).encode()


class HeldStreams:
    """Answers with streams that send their first event at once, and end when `finish` is set. A request with `never` ends
    only with its connection."""

    def __init__(self) -> None:
        self.finish = threading.Event()
        self.is_cut = 0
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(FIRST)
        try:
            if b"never" in exchange.received.body:
                while not exchange.stopped.wait(0.05):
                    exchange.chunk(b": still there\n\n")
            self.finish.wait(TIMEOUT_S)
            exchange.chunk(DONE)
            exchange.end()
        except OSError:
            with self._lock:
                self.is_cut += 1
            raise


class OpenStream:
    """A chat whose first event has come."""

    def __init__(self, server: Server, body: bytes = BODY) -> None:
        parts = urlsplit(server.url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._connection.request("POST", "/v1/chat/completions", body, JSON)
        self.response = self._connection.getresponse()
        assert self.response.status == 200, self.response.read()
        assert self.response.readline() + self.response.readline() == FIRST

    def rest(self) -> bytes:
        return self.response.read()

    def close(self) -> None:
        self.response.close()  # it has the socket, too
        self._connection.close()


@pytest.fixture
def held() -> HeldStreams:
    return HeldStreams()


@pytest.fixture
def llms(held: HeldStreams) -> Iterator[Upstream]:
    with upstream(held) as fake:
        yield fake
        held.finish.set()


@pytest.fixture
def streams() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def open_streams(
    stack: contextlib.ExitStack, server: Server, count: int, body: bytes = BODY
) -> Sequence[OpenStream]:
    def open_one(_: int) -> OpenStream:
        return OpenStream(server, body)

    with ThreadPoolExecutor(16) as pool:
        opened = list(pool.map(open_one, range(count)))
    for stream in opened:
        stack.callback(stream.close)
    return opened


def alone(llms: Upstream) -> dict[str, str]:
    """Settings for an upstream that does not need the GPU."""
    return {"EASEL_LLM_UPSTREAMS": json.dumps([{"name": "chat", "url": llms.url}])}


def sharing(llms: Upstream, stack: FakeLlamaServer) -> dict[str, str]:
    """Settings for an upstream whose requests need the GPU, which `stack` holds."""
    entry = {"name": "chat", "driver": "llama-server", "url": stack.url, "upstream": {"url": llms.url}}
    return {"EASEL_LLM_STACKS": json.dumps([entry]), "EASEL_GPU_MIN_STAY_S": "0"}


@contextlib.contextmanager
def streams_and_pictures(
    state: Path, catalogue_files: dict[str, list[str]], settings: dict[str, str]
) -> Iterator[tuple[Server, Sequence[OpenStream], Sequence[Future[requests.Response]]]]:
    """A server with streams that have begun, and pictures that were requested after them."""
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20) as sketch,
        running(state, EASEL_ENGINE_URL=sketch.url, **settings) as server,
        contextlib.ExitStack() as streams,
        ThreadPoolExecutor(PICTURES) as pool,
    ):
        opened = open_streams(streams, server, STREAMS)
        yield server, opened, [pool.submit(server.draw) for _ in range(PICTURES)]


def status(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()
    return document


def check_health(server: Server, times: int) -> None:
    for _ in range(times):
        assert requests.get(f"{server.url}/health", timeout=60).status_code == 200


def test_128_streams_and_32_pictures_go_on_together_and_health_answers(
    tmp_path: Path, catalogue_files: dict[str, list[str]], held: HeldStreams, llms: Upstream
) -> None:
    with streams_and_pictures(tmp_path / "state", catalogue_files, alone(llms)) as (server, opened, pictures):
        check_health(server, 20)
        assert [picture.result().status_code for picture in pictures] == [200] * PICTURES
        assert len(llms.posts) == STREAMS
        held.finish.set()
        assert [stream.rest() for stream in opened] == [DONE] * STREAMS


def test_128_streams_keep_the_gpu_and_32_pictures_wait_for_their_end(
    tmp_path: Path, catalogue_files: dict[str, list[str]], held: HeldStreams, llms: Upstream
) -> None:
    with (
        FakeLlamaServer() as stack,
        streams_and_pictures(tmp_path / "state", catalogue_files, sharing(llms, stack)) as run,
    ):
        server, opened, pictures = run
        wait_until(lambda: len(status(server)["tickets"]) == PICTURES)
        check_health(server, 20)
        assert not any(picture.done() for picture in pictures)
        assert stack.loaded()
        held.finish.set()
        assert [stream.rest() for stream in opened] == [DONE] * STREAMS
        assert [picture.result().status_code for picture in pictures] == [200] * PICTURES


def test_clients_beyond_the_limit_are_told_when_to_come_back(
    tmp_path: Path, sketch_url: str, held: HeldStreams, llms: Upstream, streams: contextlib.ExitStack
) -> None:
    settings = {"EASEL_WORKERS": "1", "EASEL_LLM_MAX_REQUESTS": "4", **alone(llms)}
    with running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url, **settings) as server:
        opened = open_streams(streams, server, 4)
        refused = requests.post(f"{server.url}/v1/chat/completions", json={"model": "tiny"}, timeout=60)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue.full"
        assert int(refused.headers["Retry-After"]) >= 1
        assert len(llms.posts) == 4
        assert server.draw().status_code == 200  # other requests have threads of their own
        opened[0].close()

        def is_accepted() -> bool:
            response = requests.post(
                f"{server.url}/v1/chat/completions", data=BODY, headers=JSON, stream=True, timeout=30
            )
            response.close()
            return response.status_code == 200

        wait_until(is_accepted)
        held.finish.set()


def test_a_stop_lets_fifty_streams_end_and_tells_the_rest(
    tmp_path: Path, sketch_url: str, held: HeldStreams, llms: Upstream, streams: contextlib.ExitStack
) -> None:
    with running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url, **alone(llms)) as server:
        ending = open_streams(streams, server, 40)
        endless = open_streams(streams, server, 10, BODY.replace(b"}", b', "never": true}'))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Handling signal: term")
        held.finish.set()
        assert [stream.rest() for stream in ending] == [DONE] * 40
        server.process.send_signal(signal.SIGINT)  # not to wait for the rest of the grace
        for stream in endless:
            events = stream.rest()
            assert b"server.stopping" in events
            assert events.endswith(b"\n\n")
        server.process.wait(TIMEOUT_S)
    wait_until(lambda: held.is_cut == 10)


def test_the_leases_of_killed_workers_end_and_the_gpu_is_handed_over(
    tmp_path: Path, sketch_url: str, held: HeldStreams, llms: Upstream, streams: contextlib.ExitStack
) -> None:
    with (
        FakeLlamaServer() as stack,
        running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url, **sharing(llms, stack)) as server,
    ):
        wait_until(lambda: len(server.workers()) == 2)
        opened = open_streams(streams, server, 8, BODY.replace(b"}", b', "never": true}'))
        holds = tmp_path / "state" / "gpu" / "holds"
        assert len(list(holds.glob("lease.*"))) == 8
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        for stream in opened:
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                stream.rest()
        wait_until(lambda: held.is_cut == 8)
        wait_until(lambda: _draws(server))
        assert stack.loaded() == []
        wait_until(lambda: not list(holds.glob("lease.*.inference.*")))


def _draws(server: Server) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return server.draw().status_code == 200
    return False


def test_clients_that_do_not_read_stop_neither_the_others_nor_a_new_one(
    tmp_path: Path, sketch_url: str, streams: contextlib.ExitStack
) -> None:
    sent: dict[int, int] = {}

    def endless(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(FIRST)
        if b"never" not in exchange.received.body:
            exchange.chunk(DONE)
            exchange.end()
            return
        while not exchange.stopped.is_set():
            exchange.chunk(b"data: " + bytes(65536) + b"\n\n")
            sent[id(exchange)] = time.monotonic_ns()

    with upstream(endless) as llms, running(
        tmp_path / "state", EASEL_ENGINE_URL=sketch_url, **alone(llms)
    ) as server:  # fmt: skip
        idle = open_streams(streams, server, 16, BODY.replace(b"}", b', "never": true}'))
        # Nothing more is sent: the buffers are full all the way.
        wait_until(lambda: len(sent) == 16 and time.monotonic_ns() - max(sent.values()) > 500_000_000)
        others = open_streams(streams, server, 16)
        assert [stream.rest() for stream in others] == [DONE] * 16
        assert server.draw().status_code == 200
        for stream in idle:
            stream.close()
