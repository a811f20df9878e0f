"""A language model that calls the image tool shares the GPU with its pictures: two workers, an engine that takes its time,
and an LLM server that counts what is loaded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from sketch import SketchProcess
from tests.conftest import NODES
from tests.conversation.test_sharing_the_gpu import ChatServer, chat, status, variables
from tests.llm.fake_servers import Answer
from tests.server.running import Server, running
from tests.waiting import TIMEOUT_S, wait_until

TOOL = {"type": "image_generation", "size": "256x256"}


class DrawingModel(ChatServer):
    """A llama-server whose models call the image tool, loading them for a request as the real one does."""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if path != "/v1/responses":
            return super().answer(method, path, query, body)
        status, document = super().answer(method, "/v1/chat/completions", query, body)
        if status != 200:
            return status, document
        call = {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": body["tools"][0]["name"],
            "arguments": json.dumps({"prompt": "a cat"}),
            "status": "completed",
        }
        return 200, {"id": "resp_1", "object": "response", "status": "completed", "model": body["model"], "output": [call]}  # fmt: skip


@pytest.fixture
def llama() -> Iterator[DrawingModel]:
    with DrawingModel() as fake:
        yield fake
        fake.held.set()


def ask(server: Server, **fields: Any) -> requests.Response:
    body = {"model": "chat", "input": "Draw a cat.", "tools": [TOOL], **fields}
    return requests.post(f"{server.url}/v1/responses", json=body, timeout=60)


def test_the_model_has_no_lease_while_its_picture_is_drawn(
    tmp_path: Path, catalogue_files: dict[str, list[str]], llama: DrawingModel
) -> None:
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=1000) as engine,
        running(tmp_path / "state", **variables(llama.url, engine.url)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        answered = pool.submit(ask, server)
        wait_until(lambda: status(server)["mode"] == "generation" and status(server)["jobs"])
        assert llama.loaded() == []
        response = answered.result()
        assert response.status_code == 200, response.text[:500]
        (item,) = response.json()["output"]
        assert (item["type"], item["status"], item["revised_prompt"]) == (
            "image_generation_call",
            "completed",
            "a cat",
        )
        assert chat(server).status_code == 200
        assert not llama.was_unloaded_in_use


def test_chats_and_models_that_draw_never_block_each_other(
    tmp_path: Path, sketch_url: str, llama: DrawingModel
) -> None:
    with (
        running(tmp_path / "state", **variables(llama.url, sketch_url)) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        results = [
            pool.submit(request, server) for _ in range(4) for request in (ask, chat, Server.draw, ask)
        ]
        assert [result.result().status_code for result in results] == [200] * 16
        assert not llama.was_unloaded_in_use
        wait_until(lambda: not status(server)["tickets"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "chat", "input": "Draw.", "tools": [TOOL]}),
        ("/v1/responses", {"model": "img", "input": "a cat"}),
        ("/v1/responses", {"model": "img", "input": "a cat", "stream": True}),
        ("/v1/chat/completions", {"model": "img", "messages": [{"role": "user", "content": "a cat"}]}),
        (
            "/v1/chat/completions",
            {"model": "img", "messages": [{"role": "user", "content": "a cat"}], "stream": True},
        ),
    ],
)
def test_a_client_that_hangs_up_cancels_its_picture(
    tmp_path: Path,
    catalogue_files: dict[str, list[str]],
    llama: DrawingModel,
    path: str,
    body: dict[str, Any],
) -> None:
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20_000) as engine,
        running(tmp_path / "state", **variables(llama.url, engine.url)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        is_seen = threading.Event()

        def ask_and_hang_up() -> None:
            # Streams send something at once; the others nothing until the client has no more patience.
            with requests.post(server.url + path, json=body, stream=True, timeout=(5, 3)) as response:
                parts = response.iter_content(1)  # kept: without it the connection would be closed
                next(parts)
                is_seen.wait(TIMEOUT_S)

        hung_up = pool.submit(ask_and_hang_up)
        wait_until(lambda: queue(engine)["queue_running"])
        is_seen.set()
        if body.get("stream"):
            hung_up.result()
        else:
            with pytest.raises(requests.Timeout):
                hung_up.result()
        wait_until(lambda: not status(server)["jobs"], 10)
        assert queue(engine)["queue_running"] == []


def queue(engine: SketchProcess) -> dict[str, Any]:
    document: dict[str, Any] = requests.get(f"{engine.url}/queue", timeout=60).json()
    return document
