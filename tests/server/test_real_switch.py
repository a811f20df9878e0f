"""A picture during an LLM stream, on real servers. EASEL_TEST_LLAMA_SERVER is the URL of a llama-server in router mode
(with --metrics and a model loaded), EASEL_TEST_COMFYUI that of a ComfyUI with the files of the default model."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.running import Server, running
from tests.waiting import wait_until

LLAMA, COMFYUI = "EASEL_TEST_LLAMA_SERVER", "EASEL_TEST_COMFYUI"


def test_a_picture_during_an_llm_stream_on_real_servers(tmp_path: Path) -> None:
    if not (os.environ.get(LLAMA) and os.environ.get(COMFYUI)):
        pytest.skip(
            f"NO SWITCH WITH REAL SERVERS WAS TESTED: set {LLAMA} and {COMFYUI}, or run make test-llama"
        )
    before = loaded()
    assert before, "load a model first"
    stack = {"name": "chat", "driver": "llama-server", "url": os.environ[LLAMA]}
    variables = {"EASEL_ENGINE_URL": os.environ[COMFYUI], "EASEL_LLM_STACKS": json.dumps([stack])}
    with running(tmp_path / "state", EASEL_GPU_MIN_STAY_S="0", **variables) as server:
        stream = Stream(before[0])
        wait_until(lambda: stream.lines > 10)
        response = server.draw(timeout=240)
        assert response.status_code == 200, response.text
        # The stream was complete before a model was unloaded.
        assert (stream.lines > 1000, stream.last) == (True, "data: [DONE]")
        assert loaded() == []
        assert [phase["name"] for phase in switchover(server)["phases"]][-1] == "starting"
        body = {"mode": "inference"}
        assert requests.post(f"{server.url}/api/comfyui/switchover", json=body, timeout=60).status_code == 202
        wait_until(lambda: not switchover(server)["active"], 60)
        assert (switchover(server)["error"], switchover(server)["failed"]) == (None, [])
        assert loaded() == before
        assert complete(before[0], 8).status_code == 200


class Stream(threading.Thread):
    """Reads a streamed completion that takes some seconds."""

    def __init__(self, model: str) -> None:
        super().__init__(daemon=True)
        self.lines, self.last, self._model = 0, "", model
        self.start()

    def run(self) -> None:
        with complete(self._model, 1500, stream=True) as response:
            for line in response.iter_lines():
                if line:
                    self.lines, self.last = self.lines + 1, line.decode()


def complete(model: str, tokens: int, stream: bool = False) -> requests.Response:
    body = {"model": model, "prompt": "a", "max_tokens": tokens, "stream": stream, "temperature": 0}
    return requests.post(f"{os.environ[LLAMA]}/v1/completions", json=body, stream=stream, timeout=120)


def loaded() -> list[str]:
    models = requests.get(f"{os.environ[LLAMA]}/models", timeout=60).json()["data"]
    return sorted(model["id"] for model in models if model["status"]["value"] != "unloaded")


def switchover(server: Server) -> dict[str, Any]:
    block: dict[str, Any] = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()["switchover"]
    return block
