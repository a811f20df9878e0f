"""Each preset against a server that answers as the real one does: as captured from llama-server, and as documented for the
others. The servers are strict: a path that the real one lacks is a 404, and a request without the right key a 401."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask.testing import FlaskClient

from conversation import ROUTES, Route
from conversation.upstreams import presets
from tests.conftest import MakeApp
from tests.conversation.upstream import Answer, Exchange, Upstream, upstream

KEY = "sk-of-the-upstream"
BEARER = {"Authorization": f"Bearer {KEY}"}
VERSION = {"Anthropic-Version": "2023-06-01"}
ANTHROPIC = {"X-Api-Key": KEY, **VERSION}
KEY_HEADERS = {"authorization", "x-api-key"}

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RERANK, RESPONSES, MESSAGES = "/v1/rerank", "/v1/responses", "/v1/messages"
COUNT, SPEECH = "/v1/messages/count_tokens", "/v1/audio/speech"
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
TEXT = (CHAT, COMPLETIONS, EMBEDDINGS)
OLLAMA = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show")

MP3 = b"\xff\xf3\x44\xc4" + bytes(range(256)) * 40
STREAM = (
    b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{"predicted_ms":0.144}}\n\n'
    b"data: [DONE]\n\n"
)
MESSAGES_STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","role":"assistant"}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"Hi"}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES_STREAM = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","sequence_number":1}\n\n'
)
LINES = (
    b'{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}\n'
    b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n'
)
EVENTS, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"
STREAMS = {
    CHAT: (EVENTS, STREAM),
    COMPLETIONS: (EVENTS, STREAM),
    RESPONSES: (EVENTS, RESPONSES_STREAM),
    MESSAGES: (EVENTS, MESSAGES_STREAM),
    "/api/chat": (NDJSON, LINES),
    "/api/generate": (NDJSON, LINES),
}
RESULTS: Mapping[str, tuple[str, bytes]] = {
    EMBEDDINGS: (JSON, b'{"object":"list","data":[{"embedding":[0.014728492125868797,-0.30803382396698],"index":0}]}'),
    RERANK: (JSON, b'{"object":"list","results":[{"index":1,"relevance_score":0.33205461502075195}]}'),
    SPEECH: ("audio/mpeg", MP3),
    TRANSCRIPTIONS: (JSON, b'{"text": "hello"}'),
    TRANSLATIONS: (JSON, b'{"text": "hello"}'),
    COUNT: (JSON, b'{"input_tokens":54}'),
}  # fmt: skip
DEFAULT_RESULT = (
    JSON,
    b'{"id":"1","choices":[{"message":{"role":"assistant","content":"Hi"}}],"n":12345678901234567890}',
)
"""For every other path"""


@dataclass(frozen=True)
class Failure:
    """An answer of the server to `path`, and what the client must see: its status, and a part of its body."""

    path: str
    status: int
    body: Any
    seen: int
    part: str
    kind: str = JSON


@dataclass(frozen=True)
class Kind:
    """One server. `paths`: of Easel's, those that it has, all under `prefix`. `models`: path and answer of its list."""

    preset: str
    paths: tuple[str, ...]
    models: tuple[str, Any]
    unknown: tuple[int, Any] = (404, {"detail": "Not Found"})
    headers: Mapping[str, str] = field(default_factory=lambda: BEARER)
    headers_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Path -> headers, for paths that want others"""
    prefix: str = ""
    url_suffix: str = ""
    """What its users write behind the port"""
    failures: tuple[Failure, ...] = ()


def openai_list(*ids: str, path: str = "/v1/models") -> tuple[str, Any]:
    return path, {"object": "list", "data": [{"id": id, "object": "model"} for id in ids]}


def envelope(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


MODEL = "a-model"
OVERLOADED = {
    "type": "error",
    "error": {"type": "overloaded_error", "message": "Overloaded"},
    "request_id": "req_1",
}

KINDS = [
    Kind(
        "llama-server",
        (*TEXT, RERANK, TRANSCRIPTIONS, RESPONSES, MESSAGES, COUNT),
        openai_list(MODEL),
        unknown=(404, envelope("File Not Found", type="not_found_error", code=404)),
        failures=(
            Failure(CHAT, 400, envelope("model 'x' not found", code=400), 400, '"model \'x\' not found"'),
            Failure(EMBEDDINGS, 501, envelope("This server does not support embeddings."), 501, "does not support"),
            Failure(CHAT, 503, envelope("Loading model", type="unavailable_error", code=503), 503, '"slot.loading"'),
            Failure(CHAT, 400, envelope("model is not loaded", code=400), 503, '"slot.not_ready"'),
            Failure(CHAT, 500, b"proxy error: Could not establish connection", 502, "proxy error: Could", "text/plain"),
        ),
    ),
    Kind(
        "llama-swap",
        (*TEXT, RERANK, TRANSCRIPTIONS, SPEECH, RESPONSES, MESSAGES, COUNT),
        openai_list(MODEL),
        unknown=(404, b"404 page not found\n"),
        failures=(
            Failure(CHAT, 400, {"error": "could not find real modelID for x"}, 400, '"message": "could not find'),
            Failure(CHAT, 502, b"llama-swap: upstream command exited prematurely", 502, "prematurely", "text/plain"),
        ),
    ),
    Kind(
        "vllm",
        (*TEXT, RERANK, TRANSCRIPTIONS, TRANSLATIONS, RESPONSES, MESSAGES, COUNT),
        openai_list(MODEL),
        failures=(
            Failure(CHAT, 404, envelope("The model `x` does not exist.", type="NotFoundError", code=404), 404, "NotFoundError"),
            Failure(CHAT, 422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}, 422, "body.messages: Field required"),
            Failure(MESSAGES, 404, {"type": "error", **envelope("no model", type="NotFoundError")}, 404, '"type": "error"'),
        ),
    ),
    Kind(
        "lmstudio",
        (*TEXT, RESPONSES, MESSAGES),
        openai_list(MODEL),
        unknown=(200, {"error": "Unexpected endpoint or method. (POST /v1/x). Returning 200 anyway"}),
        failures=(
            Failure(CHAT, 404, envelope("No models loaded. Please load a model", code="model_not_found"), 404, "No models"),
            Failure(CHAT, 400, {"error": "Model is unloaded."}, 503, '"slot.not_ready"'),
            Failure(CHAT, 200, {"error": "Unexpected endpoint or method."}, 502, '"dispatch.upstream_failed"'),
        ),
    ),
    Kind(
        "lemonade",
        (*TEXT, RERANK, TRANSCRIPTIONS, SPEECH, RESPONSES, MESSAGES, COUNT, *OLLAMA),
        openai_list(MODEL),
        failures=(
            Failure("/api/chat", 404, {"error": "model 'x' not found, try pulling it first"}, 404, "try pulling it first"),
            Failure("/api/chat", 500, envelope("backend died"), 500, '{"error": "backend died"}'),
        ),
    ),
    Kind(
        "tabbyapi",
        TEXT,
        openai_list(MODEL),
        failures=(
            Failure(CHAT, 503, {"detail": "No models are currently loaded."}, 503, '"slot.not_ready"'),
            Failure(CHAT, 422, {"detail": "Chat completions are disabled"}, 422, '"message": "Chat completions are disabled"'),
        ),
    ),
    Kind(
        "localai",
        (*TEXT, RERANK, TRANSCRIPTIONS, SPEECH, RESPONSES, MESSAGES, *OLLAMA),
        openai_list(MODEL),
        unknown=(404, envelope("Not Found", code=404, type="")),
        failures=(
            Failure(CHAT, 400, envelope("bad", code=400, type="invalid_request_error", param=None), 400, '"message": "bad"'),
            Failure(MESSAGES, 400, envelope("model is required", code=400), 400, '{"type": "error", "error"'),
        ),
    ),
    Kind(
        "ollama",
        (*TEXT, RESPONSES, MESSAGES, *OLLAMA),
        ("/api/tags", {"models": [{"name": "a-model", "model": "a-model", "digest": "abc"}]}),
        unknown=(404, b"404 page not found"),
        failures=(
            Failure("/api/chat", 404, {"error": "model 'x' not found"}, 404, '{"error": "model \'x\' not found"}'),
            Failure(CHAT, 404, envelope('model "x" not found', type="not_found_error", code=None), 404, "not_found_error"),
            Failure("/api/chat", 503, {"error": "server busy, please try again."}, 503, '{"error": "server busy'),
        ),
    ),
    Kind(
        "openai",
        (*TEXT, TRANSCRIPTIONS, TRANSLATIONS, SPEECH, RESPONSES),
        openai_list(MODEL),
        unknown=(404, envelope("Invalid URL", type="invalid_request_error")),
        failures=(
            Failure(CHAT, 429, envelope("Rate limit reached", code="rate_limit_exceeded"), 429, "rate_limit_exceeded"),
            Failure(CHAT, 403, envelope("Project does not have access to model", code="model_not_found"), 403, "access"),
        ),
    ),
    Kind(
        "openrouter",
        (*TEXT, RERANK, SPEECH, RESPONSES, MESSAGES),
        openai_list(MODEL, path="/api/v1/models"),
        prefix="/api",
        url_suffix="/api",
        unknown=(404, b"<!DOCTYPE html><html><body>Not Found</body></html>"),
        failures=(
            Failure(CHAT, 402, envelope("Insufficient credits", code=402), 402, "Insufficient credits"),
            Failure(CHAT, 403, envelope("Input was flagged", code=403, metadata={"reasons": ["x"]}), 403, '"reasons"'),
            Failure(CHAT, 200, envelope("Provider returned error", code=502), 502, "Provider returned error"),
        ),
    ),
    Kind(
        "anthropic",
        (CHAT, MESSAGES, COUNT),
        openai_list(MODEL, path="/v1/models?limit=1000"),
        headers=ANTHROPIC,
        headers_of={CHAT: BEARER | VERSION},
        failures=(
            Failure(MESSAGES, 529, OVERLOADED, 529, '"overloaded_error"'),
            Failure(MESSAGES, 400, {**OVERLOADED, "error": {"type": "invalid_request_error", "message": "no"}}, 400, '"request_id"'),
        ),
    ),
    Kind(
        "moonshine",
        (TRANSCRIPTIONS,),
        openai_list(MODEL),
        failures=(
            Failure(TRANSCRIPTIONS, 503, {"detail": "model not loaded"}, 503, '"slot.not_ready"'),
            Failure(TRANSCRIPTIONS, 415, {"detail": envelope("Failed to decode", code="audio.unsupported_format")}, 415, '"audio.unsupported_format"'),
        ),
    ),
    Kind(
        "kokoro",
        (SPEECH,),
        openai_list(MODEL),
        failures=(
            Failure(SPEECH, 400, {"detail": {"error": "validation_error", "message": "Voice 'x' not found.", "type": "invalid_request_error"}}, 400, '"code": "validation_error"'),
        ),
    ),
]  # fmt: skip
IDS = [f"{kind.preset}{kind.url_suffix}" for kind in KINDS]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=IDS)


def test_every_preset_is_tested() -> None:
    assert {kind.preset for kind in KINDS} | {"openai-compatible"} == set(presets())


def strictly(kind: Kind, answer: Answer) -> Answer:
    """`answer`, if the path exists and the key is right."""

    def check(exchange: Exchange) -> None:
        received = exchange.received
        sent = {name.lower(): value for name, value in received.headers.items()}
        wanted = kind.headers_of.get(received.path.removeprefix(kind.prefix), kind.headers)
        wanted = {name.lower(): value for name, value in wanted.items()}
        if {name: sent.get(name) for name in KEY_HEADERS | set(wanted)} != dict.fromkeys(
            KEY_HEADERS
        ) | wanted:
            exchange.send_json({"error": {"message": f"Incorrect API key: {sent}"}}, status=401)
        elif received.path.removeprefix(kind.prefix) in kind.paths and received.path.startswith(kind.prefix):
            answer(exchange)
        elif received.path == kind.models[0]:
            exchange.send_json(kind.models[1])
        else:
            status, body = kind.unknown
            exchange.send(status, body if isinstance(body, bytes) else json.dumps(body).encode())

    return check


def as_real(kind: Kind) -> Answer:
    """Answers as the server does, streamed if that is asked for, and in small parts."""

    def answer(exchange: Exchange) -> None:
        path = exchange.received.path.removeprefix(kind.prefix)
        is_streamed = b'"stream": true' in exchange.received.body
        content_type, body = STREAMS[path] if is_streamed else RESULTS.get(path, DEFAULT_RESULT)
        if is_streamed or path == SPEECH:
            exchange.begin(content_type)
            for start in range(0, len(body), 700):
                exchange.chunk(body[start : start + 700])
            exchange.end()
        else:
            exchange.send(200, body, content_type)

    return answer


@contextmanager
def served(make_app: MakeApp, kind: Kind) -> Iterator[tuple[FlaskClient, Upstream]]:
    """Easel in front of such a server."""
    answer = strictly(kind, as_real(kind))
    with upstream(answer, listing=answer) as fake:
        entry = {"preset": kind.preset, "url": fake.url + kind.url_suffix, "key_env": "UPSTREAM_KEY"}
        yield make_app(llm__upstreams=(entry,)).test_client(), fake


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", KEY)


def post(client: FlaskClient, route: Route, **fields: Any) -> Any:
    headers = {"Authorization": "Bearer sk-client", "X-Api-Key": "sk-client"}
    if route.is_form:
        form = {"model": MODEL, "file": (io.BytesIO(MP3), "a.mp3")}
        return client.post(route.path, data=form, headers=headers)
    return client.post(route.path, json={"model": MODEL, **fields}, headers=headers)


MID_STREAM = {
    "llama-server": (CHAT, b"data: 1\n\nproxy error: Failed to read connection", b'"message": "proxy error: Failed'),
    "openrouter": (
        CHAT,
        b': OPENROUTER PROCESSING\n\ndata: {"id":"1","error":{"code":502,"message":"x"},"choices":[{"finish_reason":"error"}]}\n\n',
        b'data: {"id":"1","error":{"code":502,"message":"x"},"choices":[{"finish_reason":"error"}]}\n\n',
    ),
    "anthropic": (
        MESSAGES,
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
    ),
    "ollama": ("/api/chat", b'{"message":{}}\n{"error":"an error was encountered"}\n', b'{"error":"an error was encountered"}\n'),
    "tabbyapi": (CHAT, b'data: {"error":{"message":"out of memory","trace":null}}\n\n', b'"message": "out of memory"'),
    "vllm": (CHAT, b'data: {"error": {"message": "x", "type": "BadRequestError", "code": 400}}\n\ndata: [DONE]\n\n', b'"BadRequestError"'),
}  # fmt: skip


@each_kind
def test_its_models_are_listed_and_it_gets_the_requests_that_it_can_answer(
    make_app: MakeApp, kind: Kind
) -> None:
    with served(make_app, kind) as (client, fake):
        models = client.get("/v1/models?type=llm").get_json()["data"]
        assert [model["id"] for model in models] == [MODEL]
        for route in ROUTES:
            fake.requests.clear()
            response = post(client, route)
            path = RERANK if route.name == "rerank" else route.path
            if path not in kind.paths:
                assert (response.status_code, fake.posts) == (404, []), route.path
                assert "does not offer" in response.get_data(as_text=True)
                continue
            content_type, body = RESULTS.get(path, DEFAULT_RESULT)
            assert (response.status_code, response.mimetype) == (200, content_type), route.path
            assert response.data == body
            assert [received.path for received in fake.posts] == [kind.prefix + path]
            if route.is_form:
                assert MP3 in fake.posts[0].body
            if path in STREAMS:
                response = post(client, route, stream=True)
                assert (response.mimetype, response.data) == STREAMS[path], path


@each_kind
def test_its_errors_reach_the_client_in_the_form_that_it_reads(make_app: MakeApp, kind: Kind) -> None:
    with served(make_app, kind) as (client, fake):
        for failure in kind.failures:
            fake.answer = strictly(kind, failing(failure))
            route = route_of(failure.path)
            response = post(client, route)
            text = response.get_data(as_text=True)
            assert (response.status_code, failure.part in text) == (failure.seen, True), text
            error = response.get_json()["error"]
            assert isinstance(error, str) if route.dialect == "ollama" else error["message"]
            assert response.get_json().get("type") == ("error" if route.dialect == "anthropic" else None)
        if kind.preset in MID_STREAM:
            path, sent, part = MID_STREAM[kind.preset]
            fake.answer = strictly(kind, streaming(STREAMS[path][0], sent))
            assert part in post(client, route_of(path), stream=True).data
        fake.answer = lambda exchange: exchange.send_json(envelope(f"Incorrect API key: {KEY}"), status=401)
        response = post(client, route_of(kind.paths[0]))
        text = response.get_data(as_text=True)
        assert (response.status_code, "rejects the key in UPSTREAM_KEY" in text) == (502, True), text
        assert KEY not in text


def route_of(path: str) -> Route:
    return next(route for route in ROUTES if route.path == path)


def failing(failure: Failure) -> Answer:
    body = failure.body if isinstance(failure.body, bytes) else json.dumps(failure.body).encode()
    return lambda exchange: exchange.send(failure.status, body, failure.kind)


def streaming(content_type: str, data: bytes) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.begin(content_type)
        exchange.chunk(data)
        exchange.end()

    return answer
