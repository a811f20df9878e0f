"""GPUStack's streams, byte for byte as its documentation shows them, and read as its web page reads them."""

from __future__ import annotations

import codecs
import json
import random
import subprocess
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from served import GIVE_UP_S, SLOW_MODEL, Served, opened

DOCUMENTED: dict[str, Any] = {
    "n": 1,
    "response_format": "b64_json",
    "size": "256x256",
    "prompt": "A lovely cat ☺",
    "quality": "standard",
    "stream": True,
    "stream_options": {"include_usage": True},
}
ADVANCED: dict[str, Any] = {
    **DOCUMENTED,
    "model": SLOW_MODEL,
    "sampler": "euler",
    "schedule": "default",
    "seed": None,
    "cfg_scale": 4.5,
    "sample_steps": 6,
    "negative_prompt": "",
}
REQUESTS = {"documented": DOCUMENTED, "advanced": ADVANCED}
PATHS = ["/v1/images/generations", "/v1-openai/image/generate", "/v1-openai/images/generations?t=1699999999"]
TIMINGS = {"generation_per_second", "time_per_generation_ms", "time_to_process_ms"}


def streamed(served: Served, path: str, body: dict[str, Any]) -> bytes:
    answer = requests.post(f"{served.normal}{path}", json=body, timeout=GIVE_UP_S)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].split(";")[0] == "text/event-stream"
    return answer.content


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("path", PATHS)
def test_16_a_stream_is_nothing_but_data_lines(served: Served, path: str, name: str) -> None:
    blocks = streamed(served, path, REQUESTS[name]).split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    assert blocks.pop() == b"data: [DONE]"
    assert_chunks([json.loads(block.removeprefix(b"data: ")) for block in blocks])


def assert_chunks(chunks: list[dict[str, Any]]) -> None:
    items = [chunk["data"][0] for chunk in chunks]
    assert {(item["index"], item["object"]) for item in items} == {(0, "image.chunk")}
    progress = [item["progress"] for item in items]
    assert (progress, progress[-1]) == (sorted(progress), 100.0)
    assert {type(chunk["created"]) for chunk in chunks} == {int}
    assert [item for item in items if item.get("b64_json")] == items[-1:]
    assert opened(items[-1]["b64_json"]).size == (256, 256)
    assert [chunk for chunk in chunks if chunk.get("usage")] == chunks[-1:]
    assert chunks[-1]["usage"].keys() >= TIMINGS


def test_16_the_documented_curl_command_shows_progress(served: Served) -> None:
    headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer myapikey"]
    url = f"{served.normal}/v1-openai/image/generate"
    curl = subprocess.run(
        ["curl", "-sSN", url, *headers, "-d", json.dumps(ADVANCED)], capture_output=True, timeout=GIVE_UP_S
    )
    lines = [line for line in curl.stdout.decode().splitlines() if line]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert_chunks(chunks)
    assert len(chunks) > 2


def test_16_a_stream_of_url_answers_has_urls(served: Served) -> None:
    body = {**DOCUMENTED, "response_format": "url"}
    last = streamed(served, PATHS[0], body).split(b"\n\n")[-3]
    item = json.loads(last.removeprefix(b"data: "))["data"][0]
    assert item["url"].startswith(f"{served.normal}/")
    assert "b64_json" not in item


# --- its web page ----------------------------------------------------------------------------------


@dataclass
class Page:
    """GPUStack's web page reading a stream, told again: blocks end at a blank line, and each must begin with `data:` or
    `error:`. With any other, everything from there on is lost."""

    chunks: list[Any] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    is_done: bool = False
    is_lost: bool = False
    _text: str = ""
    _decoder: Any = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def read(self, piece: bytes) -> None:
        self._text += self._decoder.decode(piece)
        *blocks, self._text = self._text.split("\n\n")
        for block in blocks:
            self._take(block)

    def _take(self, block: str) -> None:
        name, colon, value = block.partition(":")
        self.is_lost = self.is_lost or not colon or name not in ("data", "error")
        if self.is_lost:
            return
        if value.strip() == "[DONE]":
            self.is_done = True
        elif name == "error" or "error" in json.loads(value):
            self.errors.append(json.loads(value))
        else:
            self.chunks.append(json.loads(value))


def page_of(stream: bytes, chance: random.Random) -> Page:
    """What the page has of `stream` when that comes in pieces."""
    ends = sorted(chance.sample(range(1, len(stream)), min(40, len(stream) - 1)))
    page = Page()
    for begin, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        page.read(stream[begin:end])
    return page


def test_17_the_page_gets_every_chunk_however_the_bytes_are_cut(served: Served) -> None:
    stream = streamed(served, PATHS[0], ADVANCED)
    whole = [json.loads(block.removeprefix(b"data: ")) for block in stream.split(b"\n\n")[:-2]]
    chance = random.Random(17)
    for _ in range(50):
        page = page_of(stream, chance)
        assert (page.chunks, page.errors, page.is_done, page.is_lost) == (whole, [], True, False)


def test_17_the_page_shows_an_error_however_the_bytes_are_cut(served: Served) -> None:
    stream = refused_edit(served)
    chance = random.Random(17)
    for _ in range(50):
        page = page_of(stream, chance)
        assert (page.chunks, len(page.errors), page.is_done, page.is_lost) == ([], 2, True, False)


def test_17_the_page_reads_a_stream_that_has_partial_pictures_too(served: Served) -> None:
    page = page_of(streamed(served, PATHS[0], {**ADVANCED, "partial_images": 2}), random.Random(17))
    assert (page.errors, page.is_done, page.is_lost) == ([], True, False)
    assert all("data" in chunk for chunk in page.chunks)
    assert page.chunks[-1]["type"] == "image_generation.completed"
    assert page.chunks[-1]["data"][0]["progress"] == 100.0


@pytest.mark.parametrize("other", [b": ping\n\n", b"event: image_generation.completed\n"])
def test_the_page_told_again_is_as_strict_as_the_real_one(other: bytes) -> None:
    chunk = b'data: {"data": []}\n\n'
    page = page_of(chunk + other + chunk, random.Random(1))
    assert (len(page.chunks), page.is_lost) == (1, True)


# --- what it gets for an image that is none --------------------------------------------------------


def refused_edit(served: Served) -> bytes:
    forms = [f"image=@{served.pictures / 'no_picture.png'}", "prompt=A lovely cat", "n=1", "size=256x256"]
    forms += ["stream=true", "stream_options_include_usage=true"]
    options = [option for form in forms for option in ("-F", form)]
    url = f"{served.normal}/v1/images/edits"
    curl = subprocess.run(["curl", "-sSN", "-i", url, *options], capture_output=True, timeout=GIVE_UP_S)
    head, _, body = curl.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), curl.stdout
    assert b"content-type: text/event-stream" in head.lower()
    return body


def test_18_an_illegal_image_is_told_inside_the_stream(served: Served) -> None:
    blocks = refused_edit(served).decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    first, second = blocks
    assert json.loads(first.removeprefix("data: "))["error"]["message"].startswith("Invalid image")
    assert second.startswith("error: ")
    told = json.loads(second.removeprefix("error: "))
    assert (told["code"], told["type"]) == (400, "invalid_request_error")
    assert told["message"].startswith("Invalid image")
