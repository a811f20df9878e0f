"""GPUStack's streams: their bytes as its documentation shows them, read as its web page reads them."""

from __future__ import annotations

import codecs
import json
import random
import subprocess
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from row_support import SLOW_MODEL, TIMEOUT_S, Servers, decode_picture

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


def read_stream(servers: Servers, path: str, body: dict[str, Any]) -> bytes:
    response = requests.post(f"{servers.normal}{path}", json=body, timeout=TIMEOUT_S)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
    return response.content


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("path", PATHS)
def test_16_a_stream_has_only_data_lines(servers: Servers, path: str, name: str) -> None:
    blocks = read_stream(servers, path, REQUESTS[name]).split(b"\n\n")
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
    assert decode_picture(items[-1]["b64_json"]).size == (256, 256)
    assert [chunk for chunk in chunks if chunk.get("usage")] == chunks[-1:]
    assert chunks[-1]["usage"].keys() >= TIMINGS


def test_16_the_documented_curl_command_shows_progress(servers: Servers) -> None:
    headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer myapikey"]
    url = f"{servers.normal}/v1-openai/image/generate"
    curl = subprocess.run(
        ["curl", "-sSN", url, *headers, "-d", json.dumps(ADVANCED)], capture_output=True, timeout=TIMEOUT_S
    )
    lines = [line for line in curl.stdout.decode().splitlines() if line]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert_chunks(chunks)
    assert len(chunks) > 2


def test_16_a_stream_with_response_format_url_has_urls(servers: Servers) -> None:
    body = {**DOCUMENTED, "response_format": "url"}
    last = read_stream(servers, PATHS[0], body).split(b"\n\n")[-3]
    item = json.loads(last.removeprefix(b"data: "))["data"][0]
    assert item["url"].startswith(f"{servers.normal}/")
    assert "b64_json" not in item


# --- GPUStack's web page --------------------------------------------------------------------------


@dataclass
class PageReader:
    """Reads a stream as GPUStack's web page does: blocks end at a blank line, and each must start with `data:` or
    `error:`. After any other block it ignores the rest of the stream."""

    chunks: list[Any] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    is_done: bool = False
    is_broken: bool = False
    _text: str = ""
    _decoder: Any = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def read(self, piece: bytes) -> None:
        self._text += self._decoder.decode(piece)
        *blocks, self._text = self._text.split("\n\n")
        for block in blocks:
            self._read_block(block)

    def _read_block(self, block: str) -> None:
        name, colon, value = block.partition(":")
        self.is_broken = self.is_broken or not colon or name not in ("data", "error")
        if self.is_broken:
            return
        if value.strip() == "[DONE]":
            self.is_done = True
        elif name == "error" or "error" in json.loads(value):
            self.errors.append(json.loads(value))
        else:
            self.chunks.append(json.loads(value))


def read_in_pieces(stream: bytes, rng: random.Random) -> PageReader:
    """The page after it has read `stream` in pieces of random lengths."""
    ends = sorted(rng.sample(range(1, len(stream)), min(40, len(stream) - 1)))
    page = PageReader()
    for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        page.read(stream[start:end])
    return page


def test_17_the_page_gets_every_chunk_wherever_the_bytes_are_split(servers: Servers) -> None:
    stream = read_stream(servers, PATHS[0], ADVANCED)
    expected = [json.loads(block.removeprefix(b"data: ")) for block in stream.split(b"\n\n")[:-2]]
    rng = random.Random(17)
    for _ in range(50):
        page = read_in_pieces(stream, rng)
        assert (page.chunks, page.errors, page.is_done, page.is_broken) == (expected, [], True, False)


def test_17_the_page_shows_an_error_wherever_the_bytes_are_split(servers: Servers) -> None:
    stream = stream_of_refused_edit(servers)
    rng = random.Random(17)
    for _ in range(50):
        page = read_in_pieces(stream, rng)
        assert (page.chunks, len(page.errors), page.is_done, page.is_broken) == ([], 2, True, False)


def test_17_the_page_can_read_a_stream_with_partial_pictures(servers: Servers) -> None:
    page = read_in_pieces(
        read_stream(servers, PATHS[0], {**ADVANCED, "partial_images": 2}), random.Random(17)
    )
    assert (page.errors, page.is_done, page.is_broken) == ([], True, False)
    assert all("data" in chunk for chunk in page.chunks)
    assert page.chunks[-1]["type"] == "image_generation.completed"
    assert page.chunks[-1]["data"][0]["progress"] == 100.0


@pytest.mark.parametrize("block", [b": ping\n\n", b"event: image_generation.completed\n"])
def test_the_page_reader_is_as_strict_as_the_real_page(block: bytes) -> None:
    chunk = b'data: {"data": []}\n\n'
    page = read_in_pieces(chunk + block + chunk, random.Random(1))
    assert (len(page.chunks), page.is_broken) == (1, True)


# --- invalid images --------------------------------------------------------------------------------


def stream_of_refused_edit(servers: Servers) -> bytes:
    parts = [f"image=@{servers.pictures / 'no_picture.png'}", "prompt=A lovely cat", "n=1", "size=256x256"]
    parts += ["stream=true", "stream_options_include_usage=true"]
    options = [option for part in parts for option in ("-F", part)]
    url = f"{servers.normal}/v1/images/edits"
    curl = subprocess.run(["curl", "-sSN", "-i", url, *options], capture_output=True, timeout=TIMEOUT_S)
    head, _, body = curl.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), curl.stdout
    assert b"content-type: text/event-stream" in head.lower()
    return body


def test_18_an_invalid_image_is_an_error_in_the_stream(servers: Servers) -> None:
    blocks = stream_of_refused_edit(servers).decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    first, second = blocks
    assert json.loads(first.removeprefix("data: "))["error"]["message"].startswith("Invalid image")
    assert second.startswith("error: ")
    error = json.loads(second.removeprefix("error: "))
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith("Invalid image")
