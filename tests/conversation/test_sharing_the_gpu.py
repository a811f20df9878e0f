"""LLM requests and pictures take turns on the GPU: two workers, an engine that takes its time, and an LLM server that
counts what is loaded."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from sketch import SketchProcess
from tests.conftest import NODES
from tests.conversation.upstream import Exchange, upstream
from tests.llm.fake_servers import Answer, FakeLlamaServer
from tests.server.running import Server, running
from tests.waiting import TIMEOUT_S, wait_until


class ChatServer(FakeLlamaServer):
    """A llama-server that loads a model for a request, as the real one does; `held` keeps requests from being answered."""

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()
        self.held.set()
        self.chats = 0
        self.chat_s = 0.0
        self.was_unloaded_in_use = False

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if path == "/v1/models":
            path = "/models"
        if path != "/v1/chat/completions":
            return super().answer(method, path, query, body)
        name = body["model"]
        if name not in self.loaded():
            self.load(name)
        self.chats += 1
        self.held.wait(TIMEOUT_S)
        time.sleep(self.chat_s)
        if name not in self.loaded():
            self.was_unloaded_in_use = True
            return 500, {"error": "unloaded"}
        return 200, {"choices": [{"message": {"role": "assistant", "content": "hello"}}]}


@pytest.fixture
def llama() -> Iterator[ChatServer]:
    with ChatServer() as fake:
        yield fake
        fake.held.set()


@pytest.fixture
def engine(catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    """Takes one second for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=1000) as sketch:
        yield sketch


def variables(stack_url: str, engine_url: str, **settings: Any) -> dict[str, str]:
    stack = {
        "name": "chat",
        "driver": "llama-server",
        "url": stack_url,
        "load_s": 5,
        **settings.pop("stack", {}),
    }
    return {
        "EASEL_ENGINE_URL": engine_url,
        "EASEL_GPU_MIN_STAY_S": "0",
        "EASEL_LLM_STACKS": json.dumps([stack]),
        **{f"EASEL_{name.upper()}": str(value) for name, value in settings.items()},
    }


def chat(server: Server, model: str = "chat", **fields: Any) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


@contextlib.contextmanager
def streamed_chat(
    state: Path, llama: ChatServer, engine: SketchProcess, answer: Callable[[Exchange], None]
) -> Iterator[tuple[Server, Iterator[bytes]]]:
    """A server, and the rest of a stream whose first event has come. `answer` sends it; `llama` holds the GPU for it."""
    with upstream(answer) as fake:
        stack = {"upstream": {"url": fake.url}}
        with (
            running(state, **variables(llama.url, engine.url, stack=stack)) as server,
            requests.post(
                f"{server.url}/v1/chat/completions",
                json={"model": "tiny", "stream": True},
                stream=True,
                timeout=180,
            ) as stream,
        ):
            parts = stream.iter_content(chunk_size=None)
            assert next(parts) == b"data: 1\n\n"
            yield server, parts


def status(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()
    return document


def draws(server: Server) -> bool:
    return bool(status(server)["jobs"])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def drawing(pool: ThreadPoolExecutor, server: Server) -> Future[requests.Response]:
    """A picture that is being drawn."""
    picture = pool.submit(server.draw)
    wait_until(lambda: status(server)["mode"] == "generation" and draws(server))
    return picture


def test_a_chat_waits_for_the_picture_and_gets_the_gpu_back(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    with running(tmp_path / "state", **variables(llama.url, engine.url)) as server:
        assert chat(server).status_code == 200
        picture = drawing(pool, server)
        answered = pool.submit(chat, server)
        wait_until(
            lambda: (
                [(ticket["mode"], ticket["model"]) for ticket in status(server)["tickets"]]
                == [("inference", "chat")]
            )
        )
        assert llama.loaded() == []
        assert picture.result().status_code == 200
        assert answered.result().status_code == 200
        assert llama.chats == 2
        assert status(server)["mode"] == "inference"


def test_a_picture_waits_for_the_last_byte_of_a_stream(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    finish = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(b"data: 1\n\n")
        finish.wait(TIMEOUT_S)
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end()

    with streamed_chat(tmp_path / "state", llama, engine, answer) as (server, parts):
        picture = pool.submit(server.draw)
        wait_until(lambda: status(server)["tickets"])
        time.sleep(0.5)
        assert status(server)["mode"] == "inference"
        assert sorted(llama.loaded()) == ["chat", "embed"]
        finish.set()
        assert b"".join(parts) == b"data: [DONE]\n\n"
        assert picture.result().status_code == 200
        assert llama.loaded() == []


def test_chat_picture_chat_on_one_address_with_two_workers(
    tmp_path: Path, sketch_url: str, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    with running(tmp_path / "state", **variables(llama.url, sketch_url)) as server:

        def one_client() -> list[int]:
            return [request(server).status_code for request in (chat, Server.draw, chat, Server.draw, chat)]

        results = [pool.submit(one_client) for _ in range(4)]
        assert [result.result() for result in results] == [[200] * 5] * 4
        assert not llama.was_unloaded_in_use


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_chat_is_refused_in_generation_mode_if_the_owner_says_so(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor, is_pinned: bool
) -> None:
    policy = "switch" if is_pinned else "refuse"
    settings = variables(llama.url, engine.url, gpu_llm_during_generation=policy)
    with running(tmp_path / "state", **settings) as server:
        picture = drawing(pool, server)
        if is_pinned:
            requests.post(f"{server.url}/api/comfyui/pin", json={"pinned": True}, timeout=60)
        response = chat(server)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "gpu.image_mode")
        assert ("Retry-After" in response.headers) is not is_pinned
        assert llama.chats == 0
        assert picture.result().status_code == 200


def test_models_that_need_no_gpu_never_wait(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    with upstream() as cloud:
        config = tmp_path / "easel.yaml"
        config.write_text(json.dumps({"llm": {"upstreams": [{"name": "cloud", "url": cloud.url}]}}))
        settings = variables(llama.url, engine.url, stack={"keep": ["embed"]}, config=config)
        with running(tmp_path / "state", **settings) as server:
            picture = drawing(pool, server)
            assert [chat(server, model).status_code for model in ("tiny", "embed")] == [200, 200]
            assert not picture.done()
            assert picture.result().status_code == 200


def test_a_forced_switch_ends_a_running_chat(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    with running(tmp_path / "state", **variables(llama.url, engine.url)) as server:
        llama.held.clear()
        answered = pool.submit(chat, server)
        wait_until(lambda: llama.chats == 1)
        body = {"mode": "generation", "force": True}
        requests.post(f"{server.url}/api/comfyui/switchover", json=body, timeout=60)
        response = answered.result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "gpu.preempted")
        llama.held.set()


def test_a_stream_that_a_forced_switch_ends_says_so_although_the_llm_server_only_hangs_up(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer
) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(b"data: 1\n\n")
        wait_until(lambda: llama.loaded() == [] or exchange.stopped.is_set())
        exchange.cut()

    with streamed_chat(tmp_path / "state", llama, engine, answer) as (server, parts):
        forced = {"mode": "generation", "force": True}
        requests.post(f"{server.url}/api/comfyui/switchover", json=forced, timeout=60)
        assert b'"code": "gpu.preempted"' in b"".join(parts)


def test_a_picture_that_a_running_chat_asks_for_gives_up_and_the_chat_goes_on(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    """A tool that runs inside a chat request and draws through Easel waits for that request: without a limit, for ever."""
    with running(tmp_path / "state", **variables(llama.url, engine.url, gpu_drain_timeout_s=1)) as server:
        llama.held.clear()
        answered = pool.submit(chat, server)
        wait_until(lambda: llama.chats == 1)
        picture = server.draw()
        assert (picture.status_code, picture.json()["error"]["code"]) == (503, "gpu.switch_failed")
        llama.held.set()
        assert answered.result().status_code == 200
        assert not llama.was_unloaded_in_use


def test_a_client_that_hangs_up_while_it_waits_for_the_gpu_leaves_no_ticket(
    tmp_path: Path, engine: SketchProcess, llama: ChatServer, pool: ThreadPoolExecutor
) -> None:
    # The chat waits although the picture may be finished by now: nothing gives the GPU back.
    settings = variables(llama.url, engine.url, gpu_llm_during_generation="wait", gpu_linger_s=600)
    with running(tmp_path / "state", **settings) as server:
        picture = drawing(pool, server)
        address = urlsplit(server.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "chat"}), headers)
        wait_until(lambda: [ticket["mode"] for ticket in status(server)["tickets"]] == ["inference"])
        connection.close()
        wait_until(lambda: status(server)["tickets"] == [])
        assert picture.result().status_code == 200
        assert llama.chats == 0


def test_a_burst_of_fifty_chats_and_fifty_pictures_alternates(
    tmp_path: Path, catalogue_files: dict[str, list[str]], llama: ChatServer
) -> None:
    """Five clients on each side, one request after another: neither side has to wait until the other has no more."""
    stay_s, chat_s, picture_s = 0.3, 0.1, 0.05
    llama.chat_s = chat_s
    order: list[str] = []

    def request(kind: str, function: Callable[[Server], requests.Response]) -> int:
        status_code = function(server).status_code
        order.append(kind)
        return status_code

    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=1000 * picture_s) as sketch,
        running(
            tmp_path / "state", **variables(llama.url, sketch.url) | {"EASEL_GPU_MIN_STAY_S": str(stay_s)}
        ) as server,
        ThreadPoolExecutor(10) as pool,
    ):

        def client(kind: str, function: Callable[[Server], requests.Response]) -> list[int]:
            return [request(kind, function) for _ in range(10)]

        kinds = {"chat": chat, "picture": Server.draw}
        results = [pool.submit(client, kind, kinds[kind]) for _ in range(5) for kind in kinds]
        assert [result.result() for result in results] == [[200] * 10] * 10
    assert not llama.was_unloaded_in_use
    blocks = [(kind, len(list(requests_))) for kind, requests_ in itertools.groupby(order)]
    assert len(blocks) >= 4, blocks
    # As many as fit into a stay, and those that had begun before its end; afterwards only one side is left.
    limits = {"chat": 5 * (stay_s / chat_s + 2), "picture": stay_s / picture_s + 2 + 5}
    assert all(count <= limits[kind] for kind, count in blocks[:-1]), blocks
