"""LLM requests through a real server: gunicorn with two workers in front of a small upstream."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conversation.upstream import Answer, Exchange, Upstream, echo, upstream
from tests.raw_server import raw_server
from tests.server.running import Server, running
from tests.waiting import TIMEOUT_S, wait_until

KEY = "sk-of-the-upstream"


@pytest.fixture(scope="module")
def fake() -> Iterator[Upstream]:
    with upstream() as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fake: Upstream) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("forwarding")
    config = folder / "easel.yaml"
    document = {
        "max_request_mb": 30,
        "llm": {
            "upstreams": [
                {"name": "fake", "url": fake.url, "key_env": "FAKE_KEY", "headers": {"X-Owner": "1"},
                 "silence_timeout_s": 20, "paths": {"ollama_chat": True}},
                {"name": "dead", "url": "http://127.0.0.1:1", "models": ["dead"]},
            ],
            "aliases": {"primary": "tiny", "stt": "tiny", "tts": "tiny"},
        },
    }  # fmt: skip
    config.write_text(yaml.safe_dump(document))
    with running(
        folder / "state", EASEL_CONFIG=str(config), FAKE_KEY=KEY, EASEL_API_KEYS="sk-client"
    ) as started:
        yield started


@pytest.fixture
def ask(server: Server, fake: Upstream) -> Iterator[Any]:
    """Sends a request, with an upstream that answers as the test says."""

    def send(answer: Answer = echo, path: str = "/v1/chat/completions", **options: Any) -> requests.Response:
        fake.answer = answer
        fake.requests.clear()
        headers = {"Authorization": "Bearer sk-client", **options.pop("headers", {})}
        if not {"json", "data", "files"} & set(options):
            options["json"] = {"model": "tiny", "messages": []}
        return requests.post(server.url + path, headers=headers, timeout=30, **options)

    yield send
    fake.answer = echo


def message(response: requests.Response) -> str:
    error = response.json()["error"]
    assert {"message", "type", "param", "code", "details"} <= set(error), error
    return f"{response.status_code} {error['code']}: {error['message']}"


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


# --- faithful --------------------------------------------------------------------------------------


def test_bodies_pass_unchanged_in_both_directions(ask: Any, fake: Upstream) -> None:
    sent = b'{"model":"tiny",  "x": 1234567890123456789012, "y":1.10, "messages":[]}'
    answer = b'{"z": 1.10, "a" : 98765432109876543210}'
    response = ask(lambda exchange: exchange.send(200, answer, X_Upstream="yes"), data=sent, headers={"Content-Type": "application/json"})  # fmt: skip
    assert fake.posts[0].body == sent
    assert (response.status_code, response.content) == (200, answer)
    assert response.headers["X-Upstream"] == "yes"
    assert response.headers["Content-Length"] == str(len(answer))


def test_an_alias_is_replaced_and_nothing_else(ask: Any, fake: Upstream) -> None:
    ask(data=b'{"a": 1.0,"model":"primary"}', headers={"Content-Type": "application/json"})
    assert fake.posts[0].body == b'{"a": 1.0,"model":"tiny"}'


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            b'{"messages": [{"role": "system", "content": "You are a test assistant."}, {"role": "user", "content": '
            b'"Testing. Just say hi and nothing else."}], "model": "tiny"}',
            id="verification",
        ),
        pytest.param(
            b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "stream": true,'
            b' "stream_options": {"include_usage": true}, "max_completion_tokens": 9, "tools": [{"type": "function", '
            b'"function": {"name": "a", "parameters": {}}}, {"type": "custom", "name": "ApplyPatch", "format": {"type": '
            b'"grammar", "syntax": "lark", "definition": "start: /.+/"}}]}',
            id="tools of both APIs",
        ),
        pytest.param(
            b'{"model": "tiny", "input": [{"role": "user", "content": "hi"}], "stream": true, "include": ["x"], "reasoning": '
            b'{"effort": "medium", "summary": "auto"}, "text": {"verbosity": "low"}, "stream_options": {"include_usage": '
            b'true}, "tools": [{"type": "function", "name": "a", "parameters": {}}]}',
            id="the form of the Responses API",
        ),
    ],
)
def test_what_cursor_sends_passes_unchanged(ask: Any, fake: Upstream, body: bytes) -> None:
    assert ask(data=body, headers={"Content-Type": "application/json"}).status_code == 200
    assert (fake.posts[0].path, fake.posts[0].body) == ("/v1/chat/completions", body)


def test_no_key_passes_in_either_direction(ask: Any, fake: Upstream) -> None:
    response = ask(
        lambda exchange: exchange.send_json(
            {}, Set_Cookie="a=b", WWW_Authenticate="Bearer", Server="x", X_Echo=f"Bearer {KEY}"
        ),
        headers={
            "X-Api-Key": "sk-client",
            "Cookie": "a=b",
            "X-Goog-Api-Key": "sk-g",
            "X-Owner": "2",
            "OpenAI-Beta": "x",
        },
    )
    sent = fake.posts[0].headers
    assert sent["Authorization"] == f"Bearer {KEY}"
    assert sent["X-Owner"] == "1"
    assert sent.get("Openai-Beta") == "x"
    assert "sk-client" not in repr(sent)
    assert not {"Cookie", "X-Goog-Api-Key", "X-Api-Key"} & set(sent)
    assert not {"Set-Cookie", "WWW-Authenticate"} & set(response.headers)
    assert KEY not in repr(response.headers)


def test_the_query_passes_without_what_may_be_a_key(ask: Any, fake: Upstream) -> None:
    ask(path="/v1/chat/completions?beta=true&api_key=sk-client&autoload=a%2Fb&max_tokens=5&accessKeyId=x")
    assert fake.posts[0].path == "/v1/chat/completions?beta=true&autoload=a%2Fb&max_tokens=5"


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("X-Max-Tokens", True),
        ("X-Author", True),
        ("Anthropic-Version", True),
        ("X-AuthToken", False),
        ("X-Goog-Api-Key", False),
        ("Ocp-Apim-Subscription-Key", False),
        ("X-Client-Secret", False),
        ("X-OAuth", False),
    ],
)
def test_only_headers_that_may_be_a_key_are_kept_back(
    ask: Any, fake: Upstream, name: str, passes: bool
) -> None:
    ask(headers={name: "value"})
    assert ("value" in fake.posts[0].headers.values()) is passes


def test_spaces_around_a_model_are_removed(ask: Any, fake: Upstream) -> None:
    ask(json={"model": " tiny "})
    assert fake.posts[0].json()["model"] == "tiny"


def test_a_header_in_several_lines_passes_in_one(ask: Any) -> None:
    assert ask(lambda exchange: exchange.send(200, b"{}", X_Long="a\r\n b")).headers["X-Long"] == "a b"


@pytest.mark.parametrize("path", ["/v1/rerankings", "/v1/rerank"])
def test_reranking_goes_to_the_path_of_the_upstream(ask: Any, fake: Upstream, path: str) -> None:
    assert ask(path=path).status_code == 200
    assert fake.posts[0].path == "/v1/rerank"


def test_audio_is_forwarded_as_it_was_sent(ask: Any, fake: Upstream) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 16000, 0, "NONE", ""))
        audio.writeframes(bytes(range(256)) * 4000)
    prepared = requests.Request(
        "POST",
        "http://x",
        files={"file": ("a.wav", file.getvalue())},
        data={"model": "stt", "language": "de"},
    ).prepare()
    assert isinstance(prepared.body, bytes)
    response = ask(
        lambda exchange: exchange.send(200, b"hello", "text/plain"),
        path="/v1/audio/transcriptions",
        data=prepared.body,
        headers={"Content-Type": prepared.headers["Content-Type"]},
    )
    assert response.text == "hello"
    assert fake.posts[0].body == prepared.body.replace(b"\r\n\r\nstt\r\n", b"\r\n\r\ntiny\r\n")


def test_speech_is_passed_on_while_it_comes(ask: Any) -> None:
    proceed = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin("audio/mpeg")
        exchange.chunk(b"ID3first")
        proceed.wait(TIMEOUT_S)
        exchange.chunk(b"second")
        exchange.end()

    response = ask(answer, path="/v1/audio/speech", json={"input": "hi"}, stream=True)
    parts = response.iter_content(chunk_size=None)
    assert next(parts) == b"ID3first"
    proceed.set()
    assert b"".join(parts) == b"second"
    assert response.headers["Content-Type"] == "audio/mpeg"


def test_events_are_passed_on_while_they_come(ask: Any) -> None:
    proceed = [threading.Event() for _ in range(3)]

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        for index, step in enumerate(proceed):
            exchange.chunk(event(str(index)))
            step.wait(TIMEOUT_S)
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end()

    response = ask(answer, json={"model": "tiny", "stream": True}, stream=True)
    parts = response.iter_content(chunk_size=None)
    for index, step in enumerate(proceed):
        assert next(parts) == event(str(index))
        step.set()
    assert b"".join(parts) == b"data: [DONE]\n\n"
    assert response.headers["X-Accel-Buffering"] == "no"


def test_connections_are_reused(ask: Any, fake: Upstream) -> None:
    ask()
    before = fake.connections
    for _ in range(12):
        ask()
    assert fake.connections - before <= 2  # one for each worker


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind", "expected"),
    [
        (400, b'{"error":{"message":"too long","type":"invalid_request_error","code":"context","param":null}}', "application/json", (400, "context")),
        (422, b'{"detail":"bad field"}', "application/json", (422, "dispatch.upstream_failed")),
        (500, b"proxy error: Failed to read connection", "text/plain", (502, "dispatch.upstream_failed")),
        (502, b"<html><title>Bad Gateway</title></html>", "text/html", (502, "dispatch.upstream_failed")),
        (503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', "application/json", (503, "slot.loading")),
        (401, b'{"error":{"message":"Incorrect API key sk-of-the-upstream"}}', "application/json", (502, "dispatch.upstream_unavailable")),
        (301, b"", "text/plain", (502, "dispatch.upstream_unavailable")),
        (404, b"", "text/plain", (404, "dispatch.upstream_failed")),
    ],
)  # fmt: skip
def test_every_error_is_one_that_clients_can_read(
    ask: Any, status: int, body: bytes, kind: str, expected: tuple[int, str]
) -> None:
    response = ask(
        lambda exchange: exchange.send(status, body, kind, Location="http://elsewhere/"),
        allow_redirects=False,
    )
    text = json.dumps(response.json())
    assert KEY not in text
    assert (response.status_code, response.json()["error"]["code"]) == expected, text


def test_a_model_that_is_loading_says_when_to_come_back(ask: Any) -> None:
    body = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    response = ask(lambda exchange: exchange.send_json(body, 503), json={"model": "primary"})
    error = response.json()["error"]
    assert (response.headers["Retry-After"], response.headers["x-should-retry"]) == ("5", "true")
    assert error["details"] == {"slot": "primary", "state": "loading", "upstream": "fake", "retry_after_s": 5}


@pytest.mark.parametrize("body", [b'{"error":"no memory"}', b'{ "error" : {"message": "no memory"}}', b'{"error":{"message":"no memory"}}', b'{\n  "error": {"message":"no memory"}}'])  # fmt: skip
def test_an_error_with_status_200_is_an_error(ask: Any, body: bytes) -> None:
    assert message(ask(lambda exchange: exchange.send(200, body))).startswith("502 dispatch.upstream_failed:")


@pytest.mark.parametrize("body", [b'{"type":"error","error":{"message":"no memory"},"request_id":"x"}', b'{"success":false,"status":500,"error":"no memory"}', b'{"object":"error","message":"no memory","code":1}', b'{"id":null,"choices":[],"error":{"message":"no memory"}}'])  # fmt: skip
@pytest.mark.parametrize("has_length", [True, False])
def test_an_error_with_status_200_is_found_wherever_it_stands(
    ask: Any, body: bytes, has_length: bool
) -> None:
    def in_chunks(exchange: Exchange) -> None:
        exchange.begin("application/json")
        exchange.chunk(body)
        exchange.end()

    response = ask((lambda exchange: exchange.send(200, body)) if has_length else in_chunks)
    assert message(response).startswith("502 dispatch.upstream_failed:")
    assert "no memory" in response.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"resp_1","object":"response","status":"failed","error":{"code":"server_error","message":"x"},"output":[]}',
        b'{"choices":[{"message":{"content":"hi"},"error":null}],"error":{"message":"a warning"}}',
        b'{"choices":[{"message":{"content":"the word \\"error\\":"}}]}',
        b'{"results":["error"]}',
    ],
)
def test_an_answer_that_speaks_of_an_error_is_an_answer(ask: Any, body: bytes) -> None:
    response = ask(lambda exchange: exchange.send(200, body))
    assert (response.status_code, response.content) == (200, body)


@pytest.mark.parametrize(
    ("status", "body"), [(401, b'{"error":{"message":"bad key"}}'), (403, b""), (302, b"")]
)
def test_clients_are_told_not_to_retry_what_only_the_owner_can_mend(
    ask: Any, status: int, body: bytes
) -> None:
    response = ask(lambda exchange: exchange.send(status, body, Location="http://elsewhere/"))
    assert response.status_code == 502
    assert response.headers["x-should-retry"] == "false"
    assert "Retry-After" not in response.headers


def test_a_long_answer_that_begins_like_an_error_is_complete(ask: Any) -> None:
    body = b'{"error":null,"x":"' + b"x" * 3_000_000 + b'"}'
    assert ask(lambda exchange: exchange.send(200, body)).content == body


def test_a_text_with_a_status_of_a_bad_request_keeps_the_status(ask: Any) -> None:
    response = ask(lambda exchange: exchange.send(413, b"<h1>Too <b>large</b></h1>", "text/html"))
    assert message(response) == "413 dispatch.upstream_failed: Too large"
    assert response.headers["Content-Type"] == "application/json"


def test_an_answer_with_an_empty_error_is_an_answer(ask: Any) -> None:
    response = ask(lambda exchange: exchange.send(200, b'{"error":null,"choices":[]}'))
    assert (response.status_code, response.content) == (200, b'{"error":null,"choices":[]}')


def test_a_page_with_status_200_is_an_error(ask: Any) -> None:
    response = ask(lambda exchange: exchange.send(200, b"<html><body>Log in</body></html>", "text/html"))
    assert "Log in" in message(response)
    assert response.status_code == 502


def test_a_dead_upstream_is_a_502_that_names_it(ask: Any) -> None:
    assert "dead at http://127.0.0.1:1 refuses connections" in message(ask(json={"model": "dead"}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"json": {"model": "nope"}}, "404 dispatch.no_route"),
        ({"json": {"model": 5}}, "400 request.invalid_value"),
        ({"json": [1]}, "400 request.malformed"),
        ({"data": b'{"model"', "headers": {"Content-Type": "application/json"}}, "400 request.malformed"),
        ({"data": b"x", "headers": {"Content-Type": "text/plain"}}, "415 request.not_json"),
        ({"path": "/v1/embeddings", "json": {"input": "x"}}, "400 request.missing_model"),
        ({"path": "/v1/audio/transcriptions", "json": {}}, "415 request.wrong_content_type"),
        ({"path": "/v1/audio/transcriptions", "data": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, "400 request.malformed"),
        ({"data": b'{"x":"' + b"x" * 31_000_000 + b'"}', "headers": {"Content-Type": "application/json"}}, "413 request.too_large"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_before_the_upstream(
    ask: Any, fake: Upstream, options: dict[str, Any], expected: str
) -> None:
    assert message(ask(**options)).startswith(expected)
    assert fake.posts == []


def test_errors_have_the_form_of_the_route(ask: Any) -> None:
    assert ask(path="/v1/messages", json={"model": "nope"}).json()["type"] == "error"
    assert isinstance(ask(path="/api/chat", json={"model": "nope"}).json()["error"], str)


def test_a_stream_that_the_upstream_cuts_ends_with_an_error(ask: Any) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(event("1"))
        exchange.cut()

    lines = ask(answer, json={"model": "tiny", "stream": True}).content
    assert lines.startswith(event("1"))
    error = json.loads(lines.removeprefix(event("1")).strip().removeprefix(b"data: "))["error"]
    assert error["code"] == "dispatch.upstream_unavailable"
    assert "closed the connection before the end of its answer" in error["message"]
    assert b"[DONE]" not in lines


def test_an_answer_that_the_upstream_cuts_is_seen_to_be_incomplete(ask: Any) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin("audio/mpeg")
        exchange.chunk(b"x" * 1000)
        exchange.cut()

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(answer, path="/v1/audio/speech", json={"input": "x"})


def test_an_upstream_that_closes_without_an_answer_is_a_502(ask: Any) -> None:
    assert message(ask(lambda exchange: exchange.cut())).startswith("502 dispatch.upstream_unavailable")


def test_a_gigabyte_passes_without_being_kept(ask: Any, server: Server) -> None:
    block = b"x" * 1_000_000

    def answer(exchange: Exchange) -> None:
        exchange.begin("application/octet-stream")
        for _ in range(200):
            exchange.chunk(block)
        exchange.end()

    response = ask(answer, path="/v1/audio/speech", json={"input": "x"}, stream=True)
    assert sum(map(len, response.iter_content(1_000_000))) == 200_000_000
    assert max(peak_memory_mb(pid) for pid in server.workers()) < 150


def peak_memory_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1000


# --- clients that hang up or do not read -------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_hangs_up_ends_the_upstreams_work(
    server: Server, fake: Upstream, is_streamed: bool
) -> None:
    asked, ended = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        if is_streamed:
            exchange.begin()
            exchange.chunk(event("1"))
        asked.set()
        connection = exchange._handler.connection
        connection.settimeout(TIMEOUT_S)
        if connection.recv(1) == b"":
            ended.set()
        exchange.cut()

    fake.answer = answer
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "tiny", "stream": is_streamed})
    with socket.create_connection((host, int(port)), TIMEOUT_S) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer sk-client\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"  # fmt: skip
        client.sendall((head + body).encode())
        assert asked.wait(TIMEOUT_S)
        if is_streamed:
            client.recv(100)
    began_at = time.monotonic()
    assert ended.wait(TIMEOUT_S)
    assert time.monotonic() - began_at < 5
    fake.answer = echo


def connect(server: Server, body: bytes) -> socket.socket:
    """A client that has sent a request with this body."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), TIMEOUT_S)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer sk-client\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"  # fmt: skip
    client.sendall(head.encode() + body)
    return client


def test_a_client_may_hang_up_while_the_upstream_does_not_read_its_body(tmp_path: Path) -> None:
    begun = threading.Event()

    def serve(connection: socket.socket, stopped: threading.Event) -> None:
        connection.recv(1)
        begun.set()
        stopped.wait(TIMEOUT_S)

    with raw_server(serve) as port:
        config = tmp_path / "easel.yaml"
        entry = {"url": f"http://127.0.0.1:{port}", "models": ["tiny"]}
        config.write_text(yaml.safe_dump({"llm": {"upstreams": [entry]}}))
        with running(tmp_path / "state", EASEL_CONFIG=str(config)) as server:
            with connect(server, b'{"model":"tiny","x":"' + b"x" * 50_000_000 + b'"}'):
                assert begun.wait(TIMEOUT_S)
            server.wait_for("POST /v1/chat/completions 499")


def test_a_client_that_closes_its_connection_for_writing_counts_as_gone(
    server: Server, fake: Upstream
) -> None:
    ended = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange._handler.connection.settimeout(TIMEOUT_S)
        if exchange._handler.connection.recv(1) == b"":
            ended.set()
        exchange.cut()

    fake.answer = answer
    with connect(server, b'{"model":"tiny"}') as client:
        client.shutdown(socket.SHUT_WR)
        assert ended.wait(TIMEOUT_S)
        assert client.recv(100).split(b" ")[1] == b"499"
    fake.answer = echo


def test_a_slow_reader_slows_the_upstream_down(ask: Any) -> None:
    sent = [0]

    def answer(exchange: Exchange) -> None:
        exchange.begin("application/octet-stream")
        for _ in range(100):
            exchange.chunk(b"x" * 1_000_000)
            sent[0] += 1
        exchange.end()

    response = ask(answer, path="/v1/audio/speech", json={"input": "x"}, stream=True)
    wait_until(lambda: sent[0] > 0)
    last = -1
    while sent[0] != last:  # until the buffers on the way are full
        last = sent[0]
        time.sleep(0.3)
    assert sent[0] < 60
    assert sum(map(len, response.iter_content(1_000_000))) == 100_000_000


# --- models ----------------------------------------------------------------------------------------


def test_llms_are_listed_with_the_image_models(server: Server) -> None:
    headers = {"Authorization": "Bearer sk-client"}

    def ask(path: str) -> Any:
        document = requests.get(f"{server.url}/v1/models{path}", headers=headers, timeout=60).json()
        models = document.get("data", [document])
        is_known = all(model["engine"] for model in models if model["type"] == "image")
        return document if is_known else None

    # What the engine has is known a moment after the start, in each of the two workers.
    models = wait_until(lambda: ask(""))["data"]
    by_id = {model["id"]: model for model in models}
    assert by_id["tiny"]["owned_by"] == "fake"
    assert by_id["tiny"]["type"] == "llm"
    assert by_id["primary"]["slot_of"] == "tiny"
    assert by_id["img"]["type"] == "image"
    assert len(by_id) == len(models)
    for name in ("tiny", "primary", "img"):
        one = wait_until(lambda name=name: ask(f"/{name}"))  # type: ignore[misc]
        # Only the answer about one image model says what a form for it needs.
        extra = {"stages", "inputs", "files", "pull"} if by_id[name]["type"] == "image" else set()
        assert one.keys() - by_id[name].keys() == extra
        assert {key: value for key, value in one.items() if key not in extra} == by_id[name]
    images = requests.get(f"{server.url}/v1/models?type=image", headers=headers, timeout=60).json()["data"]
    assert {model["type"] for model in images} == {"image"}
    llms = requests.get(f"{server.url}/v1/models?type=llm", headers=headers, timeout=60).json()["data"]
    assert {model["id"] for model in llms} == {"tiny", "other", "dead", "primary", "stt", "tts"}


def test_an_upstream_that_is_silent_is_given_up(tmp_path: Path) -> None:
    with raw_server(lambda connection, stopped: stopped.wait()) as port:  # type: ignore[arg-type,return-value]
        config = tmp_path / "easel.yaml"
        entry = {"url": f"http://127.0.0.1:{port}", "models": ["m"], "silence_timeout_s": 1}
        config.write_text(yaml.safe_dump({"llm": {"upstreams": [entry]}}))
        with running(tmp_path / "state", EASEL_CONFIG=str(config)) as server:
            response = requests.post(f"{server.url}/v1/chat/completions", json={"model": "m"}, timeout=60)
            assert message(response).startswith("502 dispatch.upstream_unavailable")
            assert "did not answer in time" in response.text


def test_a_server_that_stops_ends_its_streams(tmp_path: Path) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        while not exchange.stopped.wait(0.05):
            exchange.chunk(event("x"))

    with upstream(answer) as fake:
        config = tmp_path / "easel.yaml"
        config.write_text(yaml.safe_dump({"llm": {"upstreams": [{"url": fake.url}]}}))
        with running(tmp_path / "state", EASEL_CONFIG=str(config)) as server:
            host, port = server.url.removeprefix("http://").split(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            body = json.dumps({"model": "tiny", "stream": True})
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                assert response.read1(10)
                server.process.send_signal(2)  # Ctrl-C: at once
                assert b'"code": "server.stopping"' in response.read()[-600:]
            connection.close()
