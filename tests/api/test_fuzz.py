"""Requests made from /openapi.json, and forms taken apart byte by byte: none of them is answered 500.

The same in every run; EASEL_TEST_FUZZ=2000 makes as many examples for each operation, new ones each time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from api.openapi import description
from tests.api.test_edits import mask, photo
from tests.conftest import MakeApp

MANY = int(os.environ.get("EASEL_TEST_FUZZ", "0"))
EXAMPLES = settings(
    max_examples=MANY or 25,
    derandomize=not MANY,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


OPERATIONS = [
    (path, method)
    for path, methods in description()["paths"].items()
    for method in methods
    # The other paths lead to the same routes.
    if method in ("get", "post") and "/v1-openai" not in path
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_that_the_description_allows_or_forbids_is_a_500(
    make_app: MakeApp, path: str, method: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_wsgi("/openapi.json", make_app())[path][method]

    @EXAMPLES
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call()
        # Higher ones are named troubles, such as an engine that is away; 500 is what nobody thought of.
        assert response.status_code != 500, response.text

    try:
        check()
    except Unsatisfiable:
        pytest.skip("there is nothing in it to be wrong")


# --- forms -----------------------------------------------------------------------------------------


BOUNDARY = b"boundary"


def form(parts: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts]
    return b"".join(lines) + b"--" + BOUNDARY + b"--\r\n"


def text(name: str, value: str) -> tuple[bytes, bytes]:
    return f'Content-Disposition: form-data; name="{name}"'.encode(), value.encode()


def attached(name: str, data: bytes) -> tuple[bytes, bytes]:
    return f'Content-Disposition: form-data; name="{name}"; filename="a.png"'.encode(), data


def whole() -> bytes:
    fields = [
        text("prompt", "x"),
        text("steps", "1"),
        text("n", "1"),
        text("stream_options[include_usage]", "true"),
    ]
    return form([*fields, attached("image", photo(256, 256)), attached("mask", mask())])


def damaged(dice: random.Random) -> Iterator[bytes]:
    """The form with bytes flipped, cut out, doubled, or broken off."""
    while True:
        data = bytearray(whole())
        for _ in range(dice.randint(1, 6)):
            if not data:
                break
            # Mostly where the names and boundaries are.
            place = dice.randrange(min(700, len(data)) if dice.random() < 0.7 else len(data))
            kind = dice.randrange(5)
            if kind == 0:
                data[place] ^= 1 << dice.randrange(8)
            elif kind == 1:
                del data[place : place + dice.randint(1, 40)]
            elif kind == 2:
                data[place:place] = data[place : place + dice.randint(1, 60)]
            elif kind == 3:
                data[place:place] = dice.choice(
                    [b"\r\n", b"--boundary", b"--", b'"', b"\0", b"\xff", b";", b"=", b"["]
                )
            elif kind == 4 and dice.random() < 0.3:
                del data[place:]
        yield bytes(data)


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1-openai/image/edit", "/v1/images/variations"])
def test_no_damaged_form_is_a_500(client: FlaskClient, path: str) -> None:
    dice = random.Random() if MANY else random.Random(path)
    forms = damaged(dice)
    seen: set[int] = set()
    for _ in range(MANY or 60):
        data = next(forms)
        answer = client.post(path, data=data, content_type="multipart/form-data; boundary=boundary")
        assert answer.status_code != 500, (answer.text, data[:700])
        seen.add(answer.status_code)
    assert {200, 400} <= seen


ODD_NAMES = ["", "image[", "image]", "image[[]]", "image[99999]", "image[-1]", "a[b][c]", "[x]", "prompt[x]", "n[]",
             "stream_options", "stream_options[include_usage][x]", "lora[0]", "extra_body[seed]", "extra_body", "\u2028"]  # fmt: skip
ODD_VALUES = ["", "null", "true", "1e999", "-0", "NaN", "[[[[", '{"a":', "{}", "[]", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
              "9" * 5000, "0x10", " 1 ", "1_000", "１"]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_no_odd_name_or_value_in_a_form_is_a_500(client: FlaskClient, name: str) -> None:
    for value in ODD_VALUES:
        parts = [
            text("prompt", "x"),
            text("steps", "1"),
            text(name, value),
            attached("image", photo(256, 256)),
        ]
        answer = client.post(
            "/v1/images/edits", data=form(parts), content_type="multipart/form-data; boundary=boundary"
        )
        assert answer.status_code != 500, (name, value, answer.text)


@pytest.mark.parametrize("name", ["n", "steps", "strength", "seed", "stream", "partial_images", "lora", "stream_options", "quality",
                                  "size", "cfg", "output_compression", "model", "response_format", "prompt", "negative_prompt"])  # fmt: skip
def test_no_odd_value_of_a_known_field_is_a_500(client: FlaskClient, name: str) -> None:
    for value in ODD_VALUES:
        fields = {"prompt": "x", "steps": "1", name: value}
        parts = [*(text(*field) for field in fields.items()), attached("image", photo(256, 256))]
        answer = client.post(
            "/v1/images/edits", data=form(parts), content_type="multipart/form-data; boundary=boundary"
        )
        assert answer.status_code != 500, (name, value, answer.text)
