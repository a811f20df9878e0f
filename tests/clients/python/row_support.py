"""What the rows share: the servers' addresses, the requests that they received, pictures to send, and checks of
returned pictures."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageChops

MASKED_BOX = (64, 96, 160, 192)
"""What the masks mark for redrawing: left, top, right, bottom"""
SLOW_MODEL = "sd-1.5-pruned-emaonly"
"""Draws in as many steps as requested, so that it reports progress"""
TIMEOUT_S = 280
START_TIMEOUT_S = 300
"""Open WebUI and the proxy of LiteLLM take half a minute on a good day."""
# pytest reads this file also where no servers were started.
CHAT_MODELS = os.environ.get("EASEL_TEST_CHAT_MODELS", "").split(",")
"""The fake LLM server's, that of a real llama-server if there is one, and an alias of the first"""
EMBEDDING_MODELS = os.environ.get("EASEL_TEST_EMBEDDING_MODELS", "").split(",")
ANSWER = "Hello from the upstream: 你好 🎨"
"""What the fake LLM server says; this constant and the next are those of llm_upstream.py"""
CUT_PROMPT = "cut the stream"
VECTOR = [0.25, -0.5, 1.0]
AUDIO = b"\xff\xf3\x44\xc4" + bytes(range(256)) * 400
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Servers:
    """URLs without a path. `down` has no engine, `failing` a model `fails` and a model `stitch`, which puts two images side
    by side, `slow` an engine that takes seconds, `llm` has LLM servers."""

    normal: str
    llm: str
    down: str
    failing: str
    proxied: str
    slow: str
    slow_engine: str
    access_logs: str
    pictures: Path
    is_sketch: bool

    @classmethod
    def from_environment(cls) -> Servers:
        names = ("NORMAL", "LLM", "DOWN", "FAILING", "PROXIED", "SLOW", "SLOW_ENGINE", "ACCESS_LOGS")
        urls = [os.environ[f"EASEL_TEST_{name}_URL"] for name in names]
        pictures, engine = os.environ["EASEL_TEST_PICTURES"], os.environ["EASEL_TEST_ENGINE"]
        return cls(*urls, pictures=Path(pictures), is_sketch=engine == "sketch")

    def received_requests(self, server: str, request_id: str) -> list[str]:
        """Every request with that id that `server` received, such as `POST /v1/images/generations 404`.

        Call it after the client has finished all its retries.
        """
        wait_until(lambda: self._log_lines(server, request_id))
        return self._log_lines(server, request_id)

    def _log_lines(self, server: str, request_id: str) -> list[str]:
        lines: list[str] = requests.get(f"{self.access_logs}/{server}/{request_id}", timeout=60).json()
        return lines

    def jobs(self) -> int:
        """The number of running and waiting jobs of the slow engine."""
        queue = requests.get(f"{self.slow_engine}/queue", timeout=60).json()
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    @property
    def slow_steps(self) -> int:
        """Steps of SLOW_MODEL that keep the slow engine busy for some seconds."""
        return 6 if self.is_sketch else 50

    def picture(self, name: str) -> bytes:
        return (self.pictures / name).read_bytes()


def printed_lines(program: str) -> str:
    """What `easel connect PROGRAM` prints for the server `llm`; its chat model `primary` is an alias of the fake LLM
    server's."""
    command = [*json.loads(os.environ["EASEL_TEST_CONNECT"]), program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def printed_variables(program: str) -> dict[str, str]:
    """The same for a program that is set up by variables."""
    return dict(line.split("=", 1) for line in printed_lines(program).splitlines())


@contextlib.contextmanager
def running_program(command: Sequence[str], *, health: str, log: Path, **options: Any) -> Iterator[None]:
    """A server program, until the block ends; `health`: a URL that answers 200 once it serves. `log`: its output."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
        try:
            wait_until(lambda: process.poll() is not None or _answers(health), START_TIMEOUT_S)
            assert process.poll() is None, log.read_text(errors="replace")[-5000:]
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url, timeout=10).status_code == 200
    return False


def free_port() -> int:
    """A port that no program listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def is_real(model: str) -> bool:
    """Whether a real llama-server has this model: its answers are not known beforehand."""
    return model not in (CHAT_MODELS[0], EMBEDDING_MODELS[0], CHAT_MODELS[-1])


def assert_answer(text: str | None, model: str) -> None:
    assert text if is_real(model) else text == ANSWER


def assert_vector(vector: list[float], model: str) -> None:
    assert len(vector) > 1 if is_real(model) else vector == VECTOR


def wait_until(condition: Any, timeout_s: float = 10) -> None:
    """Returns once `condition()` is true; fails if it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


def decode_picture(b64: str | None) -> Image.Image:
    """The picture in a response's `b64_json`, fully decoded."""
    assert b64
    image = Image.open(io.BytesIO(base64.b64decode(b64, validate=True)))
    image.load()
    return image


def fetch_picture(url: str | None) -> Image.Image:
    """The picture at a response's `url`, requested without a key."""
    assert url
    response = requests.get(url, timeout=60)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(response.content))
    image.load()
    return image


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def assert_red_beside_blue(picture: Image.Image) -> None:
    """What the model `stitch` makes of red.png and blue.png, in this order."""
    assert picture.size == (512, 256)
    pixels = [picture.convert("RGB").getpixel((x, 128)) for x in (128, 384)]
    assert pixels == [(255, 0, 0), (0, 0, 255)]


def assert_only_masked_box_changed(before: bytes, after: Image.Image) -> None:
    """No pixel outside MASKED_BOX changed; most pixels inside did."""
    original = Image.open(io.BytesIO(before)).convert("RGB")
    assert after.size == original.size
    difference = ImageChops.difference(original, after.convert("RGB"))
    changed = difference.convert("L").point(lambda value: 255 if value else 0)
    box = changed.getbbox()
    assert box, "no pixel changed"
    left, top, right, bottom = MASKED_BOX
    is_within = box[0] >= left and box[1] >= top and box[2] <= right and box[3] <= bottom
    assert is_within, f"pixels changed within {box}, but only {MASKED_BOX} may change"
    count = changed.crop(MASKED_BOX).histogram()[255]
    assert count > 0.5 * (right - left) * (bottom - top)


def assert_complete_usage(usage: Any) -> None:
    """`usage`, a dict, has every token count that some client reads without checking that it exists."""
    counts = [usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")]
    counts += [usage["input_tokens_details"][name] for name in ("text_tokens", "image_tokens")]
    assert all(type(count) is int for count in counts), usage
