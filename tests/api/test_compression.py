"""Long lists and event streams are compressed for clients that accept it."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from flask.testing import FlaskClient

from api.compression import _cached_gzip, compressed_stream
from tests.conftest import MakeApp


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?type=image", "/v1/models/sdxl-turbo"])
def test_a_long_answer_is_compressed_for_a_client_that_accepts_it(client: FlaskClient, path: str) -> None:
    plain = client.get(path)
    sent = client.get(path, headers={"Accept-Encoding": "gzip, deflate, br"})
    assert sent.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in sent.headers["Vary"]
    assert len(sent.data) * 4 < len(plain.data)
    assert json.loads(gzip.decompress(sent.data)) == plain.get_json()


@pytest.mark.parametrize("accepted", [None, "identity", "gzip;q=0", "br"])
def test_others_get_it_as_it_is(client: FlaskClient, accepted: str | None) -> None:
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    answer = client.get("/v1/models", headers=headers)
    assert "Content-Encoding" not in answer.headers
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert len(answer.get_json()["data"]) > 100


def test_errors_and_short_answers_are_sent_as_they_are(client: FlaskClient) -> None:
    for path in ("/v1/models/none", "/v1/models?limit=1"):
        assert "Content-Encoding" not in client.get(path, headers={"Accept-Encoding": "gzip"}).headers


def test_a_list_of_images_is_compressed_and_nothing_of_it_stays_in_memory(make_app: MakeApp) -> None:
    client = make_app().test_client()
    body = {"model": "sd-1.5", "size": "256x256", "steps": 2, "prompt": "a lighthouse " * 300}
    assert client.post("/v1/images/generations", json=body).status_code == 200
    plain, cached = client.get("/api/images"), _cached_gzip.cache_info().currsize
    sent = client.get("/api/images", headers={"Accept-Encoding": "gzip"})
    assert sent.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in sent.headers["Vary"]
    assert len(sent.data) * 4 < len(plain.data)
    assert json.loads(gzip.decompress(sent.data)) == plain.get_json()
    assert _cached_gzip.cache_info().currsize == cached


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, br", "gzip"), ("identity", None)])
def test_the_event_stream_is_compressed_for_a_client_that_accepts_it(
    client: FlaskClient, accepted: str, encoding: str | None
) -> None:
    response = client.get("/api/events", headers={"Accept-Encoding": accepted}, buffered=False)
    assert response.headers.get("Content-Encoding") == encoding
    assert "Accept-Encoding" in response.headers["Vary"]
    first = next(iter(response.response))
    assert isinstance(first, bytes)
    text = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(first) if encoding else first
    assert b"event: hello\n" in text
    response.close()


def test_what_a_stream_sends_is_readable_at_once_and_what_repeats_costs_little() -> None:
    status = json.dumps([{"id": number, "ready": number % 3 == 0} for number in range(500)]).encode()
    events = [b"event: status\ndata: " + status + b"\n\n"] * 2 + [b": still there\n\n"]
    unpacker, sizes = zlib.decompressobj(16 + zlib.MAX_WBITS), []
    *chunks, end = compressed_stream(iter(events))
    for event, chunk in zip(events, chunks, strict=True):
        assert unpacker.decompress(chunk) == event
        sizes.append(len(chunk))
    assert sizes[0] * 4 < len(status)
    assert sizes[1] * 2 < sizes[0]
    unpacker.decompress(end)
    assert unpacker.eof
