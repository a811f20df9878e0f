"""The model is found and replaced in a body, and nothing else of it changes."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversation.body import MAX_IN_MEMORY_BYTES, RequestBody
from conversation.json_fields import MAX_TOKENS, with_values
from conversation.requests import read_request
from conversation.routes import ROUTES
from errors import EaselError, InvalidRequest, InvalidValue

CHAT = next(route for route in ROUTES if route.name == "chat")
SPEECH_TO_TEXT = next(route for route in ROUTES if route.name == "transcriptions")
FORM = "multipart/form-data; boundary=xyz"


def changed(text: bytes, model: str = "new", *, content_type: str = "application/json") -> bytes:
    route = SPEECH_TO_TEXT if content_type != "application/json" else CHAT
    request = read_request(route, RequestBody.read(io.BytesIO(text)), content_type)
    body = request.body_for(model)
    content = b"".join(body)
    assert len(content) == body.length
    return content


def model_in(text: bytes) -> str:
    return read_request(CHAT, RequestBody.read(io.BytesIO(text)), "application/json").model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' {\n "z": 1, "model" : "a" , "a": 2}\n', b' {\n "z": 1, "model" : "new" , "a": 2}\n'),
        (b'{"n": 123456789012345678901234567890.50, "model": "a"}', b'{"n": 123456789012345678901234567890.50, "model": "new"}'),
        (b'{"messages":[{"model":"inner"}],"model":"a"}', b'{"messages":[{"model":"inner"}],"model":"new"}'),
        (b'{"x":"\\"model\\":\\"no\\"}","model":"a"}', b'{"x":"\\"model\\":\\"no\\"}","model":"new"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"new"}'),
        (b'{"model":null,"x":1}', b'{"model":"new","x":1}'),
        (b'{"model":""}', b'{"model":"new"}'),
        (b'{"messages":[]}', b'{"model": "new", "messages":[]}'),
        (b"{}", b'{"model": "new"}'),
        (b" { } ", b' {"model": "new" } '),
    ],
)  # fmt: skip
def test_only_the_model_changes(text: bytes, expected: bytes) -> None:
    assert changed(text) == expected


def test_a_body_whose_model_stays_is_not_changed() -> None:
    text = b'{ "model":"a",\t"x":1.0, "x":2 }'
    assert changed(text, "a") == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.text(), st.booleans(), st.integers(0, 4))
def test_any_object_is_the_same_with_another_model(
    document: dict[str, Any], model: str, is_ascii: bool, indent: int
) -> None:
    document["model"] = "old"
    text = json.dumps(document, ensure_ascii=is_ascii, indent=indent or None).encode("utf-8", "surrogatepass")
    result = json.loads(changed(text, model).decode("utf-8", "surrogatepass"))
    assert result == {**json.loads(text.decode("utf-8", "surrogatepass")), "model": model}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'"model"',
        b"{",
        b'{"model"',
        b'{"model":',
        b'{"model":"a"',
        b'{"model":"a}',
        b'{"model":"a"}}',
        b'{"model":"a"} {}',
        b'{"model":"a"]',
        b'{"x":[1,2},"model":"a"',
        b'{"model":tru}',
        b'{"model":"\\x"}',
        b'\xef\xbb\xbf{"model":"a"}',
    ],
)
def test_what_is_no_complete_object_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        model_in(text)


@pytest.mark.parametrize("value", [b"1", b"true", b"[]", b'{"a":"b"}', b"1.5"])
def test_a_model_that_is_no_string_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidValue) as caught:
        model_in(b'{"model":' + value + b"}")
    assert caught.value.param == "model"


@given(
    st.dictionaries(st.text(max_size=5), JSON, max_size=5),
    st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    st.sampled_from([None, 1]),
)
def test_values_are_replaced_and_nothing_is_added(
    document: dict[str, Any], values: dict[str, Any], indent: int | None
) -> None:
    text = json.dumps(document, indent=indent).encode()
    expected = {name: values.get(name, value) for name, value in document.items()}
    assert json.loads(with_values(text, values)) == expected


def test_what_is_not_replaced_stays_as_it_was_sent() -> None:
    text = b'{"a" : 1.10,"b":[{"c": "]"}, 1] ,"d":12345678901234567890123, "b2":"x","e":null}'
    expected = b'{"a" : 1.10,"b":{"x": 1} ,"d":12345678901234567890123, "b2":[],"e":2}'
    assert with_values(text, {"b": {"x": 1}, "b2": [], "e": 2, "other": 3}) == expected


def test_two_models_are_refused() -> None:
    with pytest.raises(InvalidValue, match="twice"):
        model_in(b'{"model":"a","model":"b"}')


def test_very_many_brackets_are_refused_soon() -> None:
    with pytest.raises(InvalidRequest, match="brackets"):
        model_in(b'{"x":' + b"[" * (MAX_TOKENS + 1))


def test_a_hundred_megabytes_cost_no_memory() -> None:
    class Large(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = iter([b'{"model":"a","x":"', *[b"A" * 65536] * 1600, b'"}'])

        def read(self, size: int = -1) -> bytes:
            return next(self.parts, b"")

    tracemalloc.start()
    try:
        body = RequestBody.read(Large())  # type: ignore[arg-type]
        request = read_request(CHAT, body, "application/json")
        total = sum(map(len, request.body_for("new")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == len(body) + 2 > 100_000_000
    assert peak < 4 * MAX_IN_MEMORY_BYTES
    body.close()


# --- forms -----------------------------------------------------------------------------------------


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(
            b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
            for head, content in parts
        )
        + b"--xyz--\r\n"
    )


AUDIO = (
    'name="file"; filename="model.wav"\r\nContent-Type: audio/wav',
    b'\0\r\n--xy\r\nname="model"\r\n\r\nno',
)


def test_only_the_model_of_a_form_changes() -> None:
    before = form(AUDIO, ('name="model"', b"old"), ('name="language"', b"de"))
    after = form(AUDIO, ('name="model"', b"new"), ('name="language"', b"de"))
    assert changed(before, content_type=FORM) == after


def test_a_form_without_a_model_gets_one() -> None:
    assert changed(form(AUDIO), content_type=FORM) == form(('name="model"', b"new"), AUDIO)


def test_an_empty_model_of_a_form_is_replaced() -> None:
    assert changed(form(('name="model"', b""), AUDIO), content_type=FORM) == form(
        ('name="model"', b"new"), AUDIO
    )


def test_a_form_may_begin_with_a_line_break() -> None:
    before = b"\r\n" + form(("name=model", b"old"))
    assert changed(before, content_type=FORM) == b"\r\n" + form(("name=model", b"new"))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(AUDIO)[:-9], FORM),
        (form(AUDIO)[:40], FORM),
        (b"", FORM),
        (b"--xyz", FORM),
        (form(AUDIO), "multipart/form-data"),
        (form(('name="model"', b"a"), ('name="model"', b"b")), FORM),
        (form(('name="model"', b"\xff")), FORM),
        (form(('name="model"', b"x" * 20_000)), FORM),
    ],
)
def test_incomplete_and_ambiguous_forms_are_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(EaselError) as caught:
        changed(body, content_type=content_type)
    assert isinstance(caught.value, InvalidRequest | InvalidValue)
