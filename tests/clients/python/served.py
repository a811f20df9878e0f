"""What the rows know of the servers: addresses, what reached them, pictures to send and how to look at those that came."""

from __future__ import annotations

import base64
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageChops

HOLE = (64, 96, 160, 192)
"""What the masks say is to be drawn anew: left, top, right, bottom"""
SLOW_MODEL = "sd-1.5-pruned-emaonly"
"""Draws in as many steps as it is told, so that there is progress to be seen"""
GIVE_UP_S = 280


@dataclass(frozen=True)
class Served:
    """Addresses without a path. `down` has no engine, `failing` a model `fails`, `slow` an engine that takes seconds."""

    normal: str
    down: str
    failing: str
    proxied: str
    slow: str
    slow_engine: str
    witness: str
    pictures: Path
    is_sketch: bool

    @classmethod
    def from_environment(cls) -> Served:
        names = ("NORMAL", "DOWN", "FAILING", "PROXIED", "SLOW", "SLOW_ENGINE", "WITNESS")
        addresses = [os.environ[f"EASEL_TEST_{name}_URL"] for name in names]
        pictures, engine = os.environ["EASEL_TEST_PICTURES"], os.environ["EASEL_TEST_ENGINE"]
        return cls(*addresses, pictures=Path(pictures), is_sketch=engine == "sketch")

    def seen(self, server: str, request_id: str) -> list[str]:
        """Every request of that id which has reached `server`: `POST /v1/images/generations 404`.

        Ask once the client is through with all its retries.
        """
        wait_until(lambda: self._lines(server, request_id))
        return self._lines(server, request_id)

    def _lines(self, server: str, request_id: str) -> list[str]:
        lines: list[str] = requests.get(f"{self.witness}/{server}/{request_id}", timeout=10).json()
        return lines

    def jobs(self) -> int:
        """How many run or wait in the slow engine."""
        queue = requests.get(f"{self.slow_engine}/queue", timeout=10).json()
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    @property
    def slow_steps(self) -> int:
        """Steps of SLOW_MODEL that keep the slow engine busy for some seconds."""
        return 6 if self.is_sketch else 50

    def picture(self, name: str) -> bytes:
        return (self.pictures / name).read_bytes()


def wait_until(condition: Any, seconds: float = 10) -> None:
    """Returns once `condition()` holds; fails when it does not in time."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)


def opened(b64: str | None) -> Image.Image:
    """The picture in an answer's `b64_json`, wholly decoded."""
    assert b64
    image = Image.open(io.BytesIO(base64.b64decode(b64, validate=True)))
    image.load()
    return image


def fetched(url: str | None) -> Image.Image:
    """The picture at an answer's `url`, to which no key is sent."""
    assert url
    answer = requests.get(url, timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    return image


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def assert_only_the_hole_changed(before: bytes, after: Image.Image) -> None:
    """Outside of HOLE not a single pixel differs; inside most do."""
    original = Image.open(io.BytesIO(before)).convert("RGB")
    assert after.size == original.size
    difference = ImageChops.difference(original, after.convert("RGB"))
    changed = difference.convert("L").point(lambda value: 255 if value else 0)
    box = changed.getbbox()
    assert box, "nothing was drawn"
    is_within = box[0] >= HOLE[0] and box[1] >= HOLE[1] and box[2] <= HOLE[2] and box[3] <= HOLE[3]
    assert is_within, f"pixels changed within {box}; only {HOLE} was to be drawn"
    inside = changed.crop(HOLE).histogram()[255]
    assert inside > 0.5 * (HOLE[2] - HOLE[0]) * (HOLE[3] - HOLE[1])


def assert_complete_usage(usage: Any) -> None:
    """`usage`, a dict, has every count that some client reads without looking first."""
    counts = [usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")]
    counts += [usage["input_tokens_details"][name] for name in ("text_tokens", "image_tokens")]
    assert all(type(count) is int for count in counts), usage
