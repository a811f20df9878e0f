"""Errors in a stream become events that clients understand; everything else passes as it is."""

from __future__ import annotations

import json

import pytest

from conversation.routes import Dialect
from conversation.stream_errors import MAX_HELD_BYTES, StreamErrors

EVENTS = b'data: {"choices":[{"delta":{"content":"a \\"error\\" b"}}]}\n\n: comment\n\nevent: x\ndata: {}\n\ndata: [DONE]\n\n'


def errors(dialect: Dialect = "openai", *, has_events: bool = True) -> StreamErrors:
    return StreamErrors(
        dialect, has_events=has_events, upstream="fake", clean=lambda text: text.replace("sk-1", "***")
    )


def passed(data: bytes, step: int, filter: StreamErrors) -> bytes:
    parts = [data[i : i + step] for i in range(0, len(data), step)]
    return b"".join(map(filter.feed, parts)) + filter.end()


@pytest.mark.parametrize("step", [1, 2, 7, 50, 10_000])
@pytest.mark.parametrize("data", [EVENTS, EVENTS.replace(b"\n", b"\r\n"), b"", b"\n", b"data: x\n\n"])
def test_events_pass_as_they_are(data: bytes, step: int) -> None:
    assert passed(data, step, errors()) == data


def test_a_complete_line_passes_at_once() -> None:
    stream = errors()
    assert stream.feed(b"data: 1\n") == b"data: 1\n"
    assert stream.feed(b"\ndata: 2\n\ndata: ") == b"\ndata: 2\n\n"
    assert stream.feed(b"3\n\n") == b"data: 3\n\n"


@pytest.mark.parametrize("step", [1, 5, 10_000])
def test_a_text_in_the_place_of_an_event_becomes_an_error(step: int) -> None:
    result = passed(b"data: 1\n\nproxy error: Failed sk-1", step, errors())
    before, _, event = result.partition(b"data: 1\n\n")
    assert before == b""
    error = json.loads(event.removeprefix(b"data: "))["error"]
    assert error["message"] == "proxy error: Failed ***"
    assert (error["code"], error["type"], error["param"]) == (
        "dispatch.upstream_failed",
        "server_error",
        None,
    )
    assert error["details"] == {"upstream": "fake"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"error": {"message": "no memory", "code": 500, "type": "x"}}, "no memory"),
        ({"error": "no memory"}, "no memory"),
        ({"object": "error", "message": "no memory"}, "no memory"),
    ],
)
def test_an_event_with_an_error_gets_the_envelope(data: object, message: str) -> None:
    line = b"data: " + json.dumps(data).encode() + b"\n\n"
    error = json.loads(passed(line, 1000, errors()).removeprefix(b"data: "))["error"]
    assert error["message"] == message
    assert {"message", "type", "param", "code", "details"} <= set(error)
    if isinstance(data, dict) and isinstance(data.get("error"), dict):
        assert (error["code"], error["type"]) == (500, "x")


def test_a_field_named_error_without_an_error_passes() -> None:
    data = b'data: {"error": null, "choices": []}\n\ndata: {"error\n\n'
    assert passed(data, 1000, errors()) == data


def test_older_llama_servers_send_a_line_named_error() -> None:
    result = passed(b'error: {"message":"too long","code":400}\n\n', 1000, errors())
    assert json.loads(result.split(b"\n")[0].removeprefix(b"data: "))["error"]["message"] == "too long"


def test_a_stream_that_is_cut_off_ends_with_an_error_in_the_place_of_the_incomplete_event() -> None:
    stream = errors()
    assert stream.feed(b'data: 1\n\ndata: {"half') == b"data: 1\n\n"
    envelope = {"error": {"message": "gone"}}
    assert stream.cut_off(envelope) == b'\n\ndata: {"error": {"message": "gone"}}\n\n'


def test_anthropics_clients_get_its_error_event() -> None:
    event = errors("anthropic").cut_off({"error": {"message": "gone"}})
    assert event == b'\n\nevent: error\ndata: {"type": "error", "error": {"message": "gone"}}\n\n'


def test_anthropics_own_error_events_pass() -> None:
    data = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
    assert passed(data, 1000, errors("anthropic")) == data


def test_ollamas_lines_pass_and_a_text_becomes_one() -> None:
    data = b'{"message":{"content":"a"}}\n{"error":"x"}\n'
    assert passed(data, 3, errors("ollama", has_events=False)) == data
    assert passed(data + b"boom", 3, errors("ollama", has_events=False)) == data + b'{"error": "boom"}\n'


def test_a_very_long_line_passes_in_parts() -> None:
    stream = errors()
    line = b"data: " + b"x" * (2 * MAX_HELD_BYTES)
    assert stream.feed(line) == line
    assert stream.feed(b"y\n\ndata: 2\n\n") == b"y\n\ndata: 2\n\n"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_no_field_of_an_error_quotes_the_key(dialect: Dialect) -> None:
    data = b'data: {"error":{"message":"no sk-1","metadata":{"raw":"Bearer sk-1"}}}\n\n'
    result = passed(data, 1000, errors(dialect))
    assert b"sk-1" not in result
    assert result.count(b"***") == 2


def test_the_key_is_removed_from_ollamas_errors() -> None:
    data = b'{"message":{"content":"sk-1"}}\n{"error":"rejected sk-1"}\n'
    result = passed(data, 1000, errors("ollama", has_events=False))
    assert result == data.replace(b"rejected sk-1", b"rejected ***")
