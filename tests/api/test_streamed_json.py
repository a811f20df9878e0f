"""Streamed JSON with pictures."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc

import pytest

from api.streamed_json import Base64, StreamedJson


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 786_431, 786_432, 786_433, 2_000_000])
def test_the_chunks_are_valid_json_of_the_announced_length(size: int) -> None:
    data = os.urandom(size)
    streamed = StreamedJson({"a": [Base64(data), Base64(data, "data:image/png;base64,")], "b": '"\\u0000 é'})
    text = b"".join(streamed)
    assert len(streamed) == len(text)
    encoded = base64.b64encode(data).decode()
    assert json.loads(text) == {"a": [encoded, "data:image/png;base64," + encoded], "b": '"\\u0000 é'}
    assert b"".join(streamed) == text


def test_a_document_without_pictures_is_plain_json_and_unsupported_values_raise() -> None:
    assert b"".join(StreamedJson({"a": 1})) == b'{"a":1}'
    with pytest.raises(TypeError):
        StreamedJson({"a": object()})


def test_ten_large_pictures_are_sent_with_little_additional_memory() -> None:
    pictures = [os.urandom(12_000_000) for _ in range(10)]
    tracemalloc.start()
    try:
        sent = sum(
            len(chunk) for chunk in StreamedJson({"data": [{"b64_json": Base64(data)} for data in pictures]})
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent > 160_000_000
    assert peak < 5_000_000
