"""Pictures in LLM APIs when the client hangs up, at every phase."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from sketch import SketchProcess
from tests.api.openai_types import CHAT, FORCED, RESPONSES, SMALL, chat_body
from tests.api.test_responses_tool import answering, call
from tests.conftest import NODES, MakeApp
from tests.conversation.upstream import Exchange, Upstream, upstream
from tests.llm.fake_servers import FakeLlamaServer
from tests.server.running import Server, running
from tests.waiting import TIMEOUT_S, wait_until

WITH_A_MODEL: dict[str, Any] = {"model": "tiny", "input": "a cat", "tools": [SMALL]}


@pytest.fixture
def slow(catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    """An engine that takes half a minute for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=30_000) as sketch:
        yield sketch


@pytest.fixture
def fake() -> Iterator[Upstream]:
    with upstream(answering(call())) as started:
        yield started


GENERATING = b"image_generation_call.generating"


@pytest.mark.parametrize(
    ("path", "body", "until"),
    [
        (RESPONSES, {"input": "a cat", **FORCED}, GENERATING),
        (RESPONSES, WITH_A_MODEL, GENERATING),
        (CHAT, chat_body(), b"assistant"),
    ],
)
def test_closing_a_stream_cancels_its_job(
    make_app: MakeApp, slow: SketchProcess, fake: Upstream, path: str, body: dict[str, Any], until: bytes
) -> None:
    app = make_app(engine__url=slow.url, llm__upstreams=[{"name": "fake", "url": fake.url}])
    container = app.extensions["easel"]

    def jobs() -> int:
        return len(container.engine_selector.current().queue().running)

    response = app.test_client().post(path, json={**body, "stream": True}, buffered=False)
    assert any(until in event for event in response.iter_encoded())
    wait_until(jobs)
    response.close()
    wait_until(lambda: not jobs())
    wait_until(lambda: container.generator.admission.count == 0)
    assert container.forwarder.running == 0


class Client:
    """A request whose connection can be closed at any time."""

    def __init__(self, server: Server, **fields: Any) -> None:
        address = urlsplit(server.url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", RESPONSES, json.dumps({**WITH_A_MODEL, **fields}), headers)

    def hang_up(self) -> None:
        self._connection.close()


def status(server: Server) -> Any:
    return requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()


def waiting(server: Server) -> list[str]:
    return [ticket["mode"] for ticket in status(server)["tickets"]]


@pytest.mark.parametrize("stream", [True, False])
def test_with_a_model_a_client_may_hang_up_at_any_time(
    tmp_path: Path, slow: SketchProcess, fake: Upstream, stream: bool
) -> None:
    """Two workers, and a model that needs the GPU: while it answers, while the picture waits, and while it is drawn."""
    holds, finish, was_cut = threading.Event(), threading.Event(), threading.Event()
    draws = fake.answer

    def answer(exchange: Exchange) -> None:
        if b"endless" in exchange.received.body:
            exchange.begin("text/event-stream" if stream else "application/json")
            try:
                while not exchange.stopped.wait(0.02):
                    exchange.chunk(b"\n\n")
            except OSError:
                was_cut.set()
        elif b"holds the GPU" in exchange.received.body:
            holds.set()
            finish.wait(TIMEOUT_S)
            answering()(exchange)
        else:
            draws(exchange)

    fake.answer = answer
    with FakeLlamaServer() as llama:
        stack = {"driver": "llama-server", "name": "chat", "url": llama.url, "upstream": {"url": fake.url}}
        variables = {"EASEL_ENGINE_URL": slow.url, "EASEL_LLM_STACKS": json.dumps([stack])}
        leases = tmp_path / "state" / "gpu" / "holds"
        with running(tmp_path / "state", EASEL_GPU_MIN_STAY_S="0", **variables) as server:
            answered = Client(server, input="endless", stream=stream)
            wait_until(lambda: list(leases.glob("lease.*")))
            answered.hang_up()
            assert was_cut.wait(TIMEOUT_S)

            other = Client(server, input="holds the GPU")
            assert holds.wait(TIMEOUT_S)
            waits = Client(server, stream=stream)
            wait_until(lambda: waiting(server) == ["generation"])
            waits.hang_up()
            wait_until(lambda: waiting(server) == [])
            finish.set()
            other.hang_up()

            drawn = Client(server, stream=stream)
            wait_until(lambda: status(server)["jobs"])
            drawn.hang_up()
            wait_until(lambda: not status(server)["jobs"])
            wait_until(lambda: not list(leases.glob("lease.*")))
            assert waiting(server) == []
            assert "Traceback" not in server.log
