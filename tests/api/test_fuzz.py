"""Fuzzing: requests generated from /openapi.json, and damaged forms. None of them may cause status 500.

The examples are the same in every run. EASEL_TEST_FUZZ=2000 generates 2,000 random examples per operation instead.
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

RANDOM_EXAMPLES = int(os.environ.get("EASEL_TEST_FUZZ", "0"))
EXAMPLES = settings(
    max_examples=RANDOM_EXAMPLES or 25,
    derandomize=not RANDOM_EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


OPERATIONS = [
    (path, method)
    for path, methods in description()["paths"].items()
    for method in methods
    # The /v1-openai paths have the same handlers.
    if method in ("get", "post") and "/v1-openai" not in path
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_generated_request_is_a_500(
    make_app: MakeApp, path: str, method: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_wsgi("/openapi.json", make_app())[path][method]

    @EXAMPLES
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call()
        # Statuses above 500 are known errors, such as an unreachable engine; 500 is an unexpected exception.
        assert response.status_code != 500, response.text

    try:
        check()
    except Unsatisfiable:
        pytest.skip("this operation has no invalid requests")


# --- forms -----------------------------------------------------------------------------------------


BOUNDARY = b"boundary"


def form(parts: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts]
    return b"".join(lines) + b"--" + BOUNDARY + b"--\r\n"


def text(name: str, value: str) -> tuple[bytes, bytes]:
    return f'Content-Disposition: form-data; name="{name}"'.encode(), value.encode()


def attached(name: str, data: bytes) -> tuple[bytes, bytes]:
    return f'Content-Disposition: form-data; name="{name}"; filename="a.png"'.encode(), data


def complete_form(*, with_mask: bool) -> bytes:
    fields = [
        text("prompt", "x"),
        text("steps", "1"),
        text("n", "1"),
        text("stream_options[include_usage]", "true"),
    ]
    masks = [attached("mask", mask())] if with_mask else []
    return form([*fields, attached("image", photo(256, 256)), *masks])


def damaged_forms(rng: random.Random, *, with_mask: bool) -> Iterator[bytes]:
    """The form with random bytes flipped, removed, duplicated or inserted, or with its end cut off."""
    while True:
        data = bytearray(complete_form(with_mask=with_mask))
        for _ in range(rng.randint(1, 6)):
            if not data:
                break
            # Mostly in the first bytes, which contain names and boundaries.
            position = rng.randrange(min(700, len(data)) if rng.random() < 0.7 else len(data))
            change = rng.randrange(5)
            if change == 0:
                data[position] ^= 1 << rng.randrange(8)
            elif change == 1:
                del data[position : position + rng.randint(1, 40)]
            elif change == 2:
                data[position:position] = data[position : position + rng.randint(1, 60)]
            elif change == 3:
                data[position:position] = rng.choice(
                    [b"\r\n", b"--boundary", b"--", b'"', b"\0", b"\xff", b";", b"=", b"["]
                )
            elif change == 4 and rng.random() < 0.3:
                del data[position:]
        yield bytes(data)


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1-openai/image/edit", "/v1/images/variations"])
def test_no_damaged_form_is_a_500(client: FlaskClient, path: str) -> None:
    rng = random.Random() if RANDOM_EXAMPLES else random.Random(path)
    forms = damaged_forms(rng, with_mask="variations" not in path)  # a variation has no mask
    statuses: set[int] = set()
    for _ in range(RANDOM_EXAMPLES or 60):
        data = next(forms)
        response = client.post(path, data=data, content_type="multipart/form-data; boundary=boundary")
        assert response.status_code != 500, (response.text, data[:700])
        statuses.add(response.status_code)
    assert {200, 400} <= statuses


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
        response = client.post(
            "/v1/images/edits", data=form(parts), content_type="multipart/form-data; boundary=boundary"
        )
        assert response.status_code != 500, (name, value, response.text)


@pytest.mark.parametrize("name", ["n", "steps", "strength", "seed", "stream", "partial_images", "lora", "stream_options", "quality",
                                  "size", "cfg", "output_compression", "model", "response_format", "prompt", "negative_prompt"])  # fmt: skip
def test_no_odd_value_of_a_known_field_is_a_500(client: FlaskClient, name: str) -> None:
    for value in ODD_VALUES:
        fields = {"prompt": "x", "steps": "1", name: value}
        parts = [*(text(*field) for field in fields.items()), attached("image", photo(256, 256))]
        response = client.post(
            "/v1/images/edits", data=form(parts), content_type="multipart/form-data; boundary=boundary"
        )
        assert response.status_code != 500, (name, value, response.text)
