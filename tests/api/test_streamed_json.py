"""JSON with pictures in it, in pieces."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc

import pytest

from api.streamed_json import Base64, StreamedJson


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 786_431, 786_432, 786_433, 2_000_000])
def test_the_pieces_are_the_json_and_as_long_as_they_say(size: int) -> None:
    data = os.urandom(size)
    pieces = StreamedJson({"a": [Base64(data), Base64(data, "data:image/png;base64,")], "b": '"\\u0000 é'})
    text = b"".join(pieces)
    assert len(pieces) == len(text)
    encoded = base64.b64encode(data).decode()
    assert json.loads(text) == {"a": [encoded, "data:image/png;base64," + encoded], "b": '"\\u0000 é'}
    assert b"".join(pieces) == text


def test_a_document_without_pictures_is_plain_json_and_what_is_no_json_is_an_error() -> None:
    assert b"".join(StreamedJson({"a": 1})) == b'{"a":1}'
    with pytest.raises(TypeError):
        StreamedJson({"a": object()})


def test_ten_large_pictures_are_sent_with_next_to_no_memory_of_their_own() -> None:
    pictures = [os.urandom(12_000_000) for _ in range(10)]
    tracemalloc.start()
    try:
        sent = sum(
            len(piece) for piece in StreamedJson({"data": [{"b64_json": Base64(data)} for data in pictures]})
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent > 160_000_000
    assert peak < 5_000_000
