"""Limits of JSON bodies: they are checked before a body costs CPU time."""

from __future__ import annotations

import json
import time

import pytest
from flask.testing import FlaskClient

from api.field_values import parse_json_field
from api.json_body import MAX_VALUES, has_too_many_values, json_object
from errors import InvalidRequest, InvalidValue

MEGABYTES = 30_000_000


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": [' + b"{}," * (MEGABYTES // 3) + b"{}]}",
        b'{"a": [' + b'"",' * (MEGABYTES // 3) + b'""]}',
        b'{"a": [' + b'"\\\\",' * (MEGABYTES // 5) + b'""]}',
        b'{"a": "' + b"," * MAX_VALUES + b'", "b": ' + b'""' * (MEGABYTES // 2),
        b'{"a": ' + b"[" * MEGABYTES,
        b'{"a": "' + b",\\\\" * (MEGABYTES // 3),
    ],
    ids=["objects", "strings", "escapes", "quotes", "nested", "no end"],
)
def test_a_body_of_very_many_values_is_refused_in_no_time(text: bytes) -> None:
    started = time.thread_time()
    with pytest.raises(InvalidRequest):
        json_object(text)
    # Half a minute before there was a limit; some tenths of a second now.
    assert time.thread_time() - started < 5


def test_the_limit_counts_values_and_not_the_commas_in_texts() -> None:
    assert has_too_many_values(json.dumps([0] * (MAX_VALUES + 1)).encode())
    assert not has_too_many_values(json.dumps([0] * MAX_VALUES).encode())
    prompt = 'cat, dog, "bird", \\, ' * MAX_VALUES
    assert json_object(json.dumps({"prompt": prompt, "n": 1}).encode()) == {"prompt": prompt, "n": 1}


def test_json_in_a_form_has_the_same_limit() -> None:
    with pytest.raises(InvalidValue, match="more than 10000 values"):
        parse_json_field("loras", "[" + "{}," * MAX_VALUES + "{}]")
    assert parse_json_field("loras", '["a,b"]') == ["a,b"]


def test_paths_without_images_take_one_megabyte(client: FlaskClient) -> None:
    body = {"pinned": True, "more": "x" * 1_000_000}
    response = client.post("/api/comfyui/pin", json=body)
    assert (response.status_code, response.get_json()["error"]["code"]) == (413, "request.too_large")
    assert response.get_json()["error"]["details"] == {"limit": 1_000_000}
    image = {"prompt": "a", "images": [{"image_url": "data:image/png;base64," + "A" * 1_000_000}]}
    response = client.post("/v1/images/edits", json=image)
    assert response.get_json()["error"]["code"] == "image.invalid_image"
