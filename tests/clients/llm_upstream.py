"""A small LLM server for the rows. It is strict: it wants its own key, knows only its models and paths, and answers 400 to a
request that lacks what its path needs. Its answers are those that OpenAI, Anthropic and Ollama document."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, cast

from tests.conversation.upstream import Exchange, upstream

KEY = "sk-of-the-upstream"
CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL, TRANSCRIPTION_MODEL = "talks", "embeds", "speaks", "hears"
MODELS = (CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL, TRANSCRIPTION_MODEL)
ANSWER = "Hello from the upstream: 你好 🎨"
PARTS = [ANSWER[start : start + 5] for start in range(0, len(ANSWER), 5)]
CUT_PROMPT = "cut the stream"
"""A streamed chat with this prompt ends with a line that is no event"""
PICTURE_PROMPT = "a red cat"
"""What it asks the image tool for"""
VECTOR = [0.25, -0.5, 1.0]
AUDIO = b"\xff\xf3\x44\xc4" + bytes(range(256)) * 400
TOOL_ARGUMENTS = '{"city":"Paris"}'
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
_CREATED_AT = "2026-01-01T00:00:00Z"

Body = Mapping[str, Any]


@contextmanager
def serve_llm() -> Iterator[str]:
    """The URL of such a server, which runs inside the block."""
    with upstream(_answer, listing=_answer) as server:
        yield server.url


def _answer(exchange: Exchange) -> None:
    received = exchange.received
    sent = {name.lower(): value for name, value in received.headers.items()}
    if sent.get("authorization") != f"Bearer {KEY}" or "x-api-key" in sent:
        return exchange.send_json({"error": {"message": "Incorrect API key provided"}}, status=401)
    answers = _GET if received.method == "GET" else _POST
    path = received.path.partition("?")[0]  # Claude Code adds ?beta=true.
    if (answer := answers.get(path)) is None:
        return exchange.send_json({"detail": "Not Found"}, status=404)
    if received.method == "GET":
        return answer(exchange, {})
    form = path == "/v1/audio/transcriptions"
    body = _form(sent["content-type"], received.body) if form else json.loads(received.body)
    if missing := {"model", *_NEEDED[path]} - set(body):
        return _refuse(exchange, f"missing: {sorted(missing)}")
    if body["model"] not in MODELS:
        return _refuse(exchange, f"unknown model: {body['model']}")
    return answer(exchange, body)


def _refuse(exchange: Exchange, message: str) -> None:
    exchange.send_json({"error": {"message": message, "type": "invalid_request_error"}}, status=400)


def _form(content_type: str, body: bytes) -> dict[str, Any]:
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    )
    fields: dict[str, Any] = {}
    for part in cast("Iterable[EmailMessage]", message.iter_parts()):
        content = cast(bytes, part.get_payload(decode=True))
        name = str(part.get_param("name", header="content-disposition"))
        fields[name] = content if part.get_filename() else content.decode()
    return fields


def _events(exchange: Exchange, documents: list[Any], *, named: bool, end: bytes = b"") -> None:
    exchange.begin()
    for document in documents:
        name = f"event: {document['type']}\n" if named else ""
        exchange.chunk(f"{name}data: {json.dumps(document)}\n\n".encode())
    if end:
        exchange.chunk(end)
    exchange.end()


# --- OpenAI ----------------------------------------------------------------------------------------


def _models(exchange: Exchange, _: Body) -> None:
    entries = [{"id": id, "object": "model", "created": 1700000000, "owned_by": "me"} for id in MODELS]
    exchange.send_json({"object": "list", "data": entries})


def _chat(exchange: Exchange, body: Body) -> None:
    last = body["messages"][-1]
    calls_tool = bool(body.get("tools")) and last["role"] == "user"
    function = {"name": "weather", "arguments": TOOL_ARGUMENTS}
    call = {"id": "call_1", "type": "function", "function": function}
    reason = "tool_calls" if calls_tool else "stop"
    head = {"id": "chatcmpl-1", "created": 1700000000, "model": body["model"]}
    if not body.get("stream"):
        content = None if calls_tool else f"It is {last['content']}" if last["role"] == "tool" else ANSWER
        message = {"role": "assistant", "content": content} | ({"tool_calls": [call]} if calls_tool else {})
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return exchange.send_json({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    deltas: list[Any] = [{"content": part} for part in PARTS]
    if calls_tool:
        opening = {**call, "index": 0, "function": {**function, "arguments": ""}}
        pieces = [{"index": 0, "function": {"arguments": part}} for part in ('{"city":', '"Paris"}')]
        deltas = [{"tool_calls": [part]} for part in (opening, *pieces)]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    if last["content"] == CUT_PROMPT:
        chunks = [{**head, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices[:2]]
        return _events(exchange, chunks, named=False, end=b"proxy error: Failed to read connection")
    choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    chunks = [{**head, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    return _events(exchange, chunks, named=False, end=b"data: [DONE]\n\n")


def _completion(exchange: Exchange, body: Body) -> None:
    choice = {"index": 0, "text": ANSWER, "finish_reason": "stop", "logprobs": None}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": body["model"]}
    exchange.send_json({**head, "choices": [choice], "usage": USAGE})


def _embeddings(exchange: Exchange, body: Body) -> None:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    if any(not isinstance(text, str) for text in inputs):
        return _refuse(exchange, "input must be texts")
    packed = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    vector = packed if body.get("encoding_format") == "base64" else VECTOR
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(inputs))]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return exchange.send_json({"object": "list", "data": data, "model": body["model"], "usage": usage})


def _speech(exchange: Exchange, _: Body) -> None:
    exchange.begin("audio/mpeg")
    for start in range(0, len(AUDIO), 7000):
        exchange.chunk(AUDIO[start : start + 7000])
    exchange.end()


def _transcription(exchange: Exchange, body: Body) -> None:
    if body["file"] != AUDIO:
        return _refuse(exchange, "another file than the rows send")
    return exchange.send_json({"text": ANSWER})


def _response(exchange: Exchange, body: Body) -> None:
    item = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
    }
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1700000000,
        "status": "completed",
        "model": body["model"],
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    if any(tool.get("name") == "image_generation" for tool in body.get("tools") or ()):
        return _response_with_a_picture(exchange, body, response)
    if not body.get("stream"):
        return exchange.send_json(response)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": text, "logprobs": []} for text in PARTS),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return _events(exchange, numbered, named=True)


def _response_with_a_picture(exchange: Exchange, body: Body, response: dict[str, Any]) -> None:
    """A call of the function that Easel offers in the place of the image tool."""
    arguments = json.dumps({"prompt": PICTURE_PROMPT})
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "image_generation",
        "status": "completed",
    }
    call["arguments"] = arguments
    response = {**response, "output": [call]}
    if not body.get("stream"):
        return exchange.send_json(response)
    place = {"output_index": 0}
    begun = {**call, "arguments": "", "status": "in_progress"}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", **place, "item": begun},
        {"type": "response.function_call_arguments.delta", **place, "item_id": "fc_1", "delta": arguments},
        {"type": "response.output_item.done", **place, "item": call},
        {"type": "response.completed", "response": response},
    ]
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return _events(exchange, numbered, named=True)


# --- Anthropic -------------------------------------------------------------------------------------


def _message(exchange: Exchange, body: Body) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
    }
    if not body.get("stream"):
        return exchange.send_json(message)
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            for text in PARTS
        ),
    ]
    if body["messages"][-1]["content"] == CUT_PROMPT:
        overloaded = {"type": "overloaded_error", "message": "Overloaded"}
        return _events(exchange, [*events, {"type": "error", "error": overloaded}], named=True)
    events += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    ]
    return _events(exchange, events, named=True)


def _count_tokens(exchange: Exchange, _: Body) -> None:
    exchange.send_json({"input_tokens": 3})


# --- Ollama ----------------------------------------------------------------------------------------


def _ollama(field: str, wrap: Callable[[str], Any]) -> Callable[[Exchange, Body], None]:
    def answer(exchange: Exchange, body: Body) -> None:
        head = {"model": body["model"], "created_at": _CREATED_AT}
        end = {"done": True, "done_reason": "stop", "eval_count": 5}
        if body.get("stream") is False:
            return exchange.send_json({**head, field: wrap(ANSWER), **end})
        exchange.begin("application/x-ndjson")
        for text in PARTS:
            exchange.chunk(json.dumps({**head, field: wrap(text), "done": False}).encode() + b"\n")
        exchange.chunk(json.dumps({**head, field: wrap(""), **end}).encode() + b"\n")
        return exchange.end()

    return answer


def _ollama_embed(exchange: Exchange, body: Body) -> None:
    exchange.send_json({"model": body["model"], "embeddings": [VECTOR]})


def _ollama_show(exchange: Exchange, _: Body) -> None:
    details = {"format": "gguf", "family": "llama", "parameter_size": "1B", "quantization_level": "Q4_0"}
    exchange.send_json({"details": details, "model_info": {}, "capabilities": ["completion"]})


_GET = {"/v1/models": _models}
_POST: Mapping[str, Callable[[Exchange, Body], None]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
    "/v1/audio/speech": _speech,
    "/v1/audio/transcriptions": _transcription,
    "/v1/responses": _response,
    "/v1/messages": _message,
    "/v1/messages/count_tokens": _count_tokens,
    "/api/chat": _ollama("message", lambda text: {"role": "assistant", "content": text}),
    "/api/generate": _ollama("response", str),
    "/api/embed": _ollama_embed,
    "/api/show": _ollama_show,
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/embeddings": ("input",),
    "/v1/audio/speech": ("input", "voice"),
    "/v1/audio/transcriptions": ("file",),
    "/v1/responses": ("input",),
    "/v1/messages": ("messages", "max_tokens"),
    "/v1/messages/count_tokens": ("messages",),
    "/api/chat": ("messages",),
    "/api/generate": ("prompt",),
    "/api/embed": ("input",),
    "/api/show": (),
}
