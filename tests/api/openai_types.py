"""What OpenAI's Python SDK makes of responses and events, checked strictly: no missing field, no wrong type."""

from __future__ import annotations

import json
from typing import Any

from flask.testing import FlaskClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.api.sse import events_of

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
TOOL = {"type": "image_generation"}
SMALL = {**TOOL, "size": "256x256", "model": "sd-1.5"}
FORCED = {"tools": [SMALL], "tool_choice": TOOL}
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def strict(model: type[BaseModel], document: Any) -> Any:
    return model.model_validate_json(json.dumps(document), strict=True)


def respond(client: FlaskClient, **fields: Any) -> tuple[dict[str, Any], Response]:
    """A response without a stream, as JSON and as the SDK types it."""
    answer = client.post(RESPONSES, json={"input": "a cat", **fields})
    assert answer.status_code == 200, answer.text[:1000]
    document: dict[str, Any] = answer.get_json()
    return document, strict(Response, document)


def checked_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream: numbered from 0, named as their type, and as the SDK types them."""
    events = [event for event in events_of(text) if event.data is not None]
    for number, event in enumerate(events):
        assert event.name == event.data["type"]
        assert event.data["sequence_number"] == number, event.raw[:300]
        checked = _EVENT.validate_json(json.dumps(event.data), strict=True)
        assert type(checked).__name__ != "BaseModel"
        assert checked.type == event.data["type"]
    return [event.data for event in events]


def stream_response(client: FlaskClient, **fields: Any) -> list[dict[str, Any]]:
    answer = client.post(RESPONSES, json={"input": "a cat", "stream": True, **fields})
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text[:1000]
    return checked_events(answer.text)


def chat(client: FlaskClient, content: Any = "a cat", **fields: Any) -> tuple[dict[str, Any], ChatCompletion]:
    """A completion without a stream, as JSON and as the SDK types it."""
    answer = client.post(CHAT, json=chat_body(content, **fields))
    assert answer.status_code == 200, answer.text[:1000]
    document: dict[str, Any] = answer.get_json()
    return document, strict(ChatCompletion, document)


def chat_body(content: Any = "a cat", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "sd-1.5", "messages": messages, "size": "256x256", **fields}


def stream_chat(client: FlaskClient, content: Any = "a cat", **fields: Any) -> list[dict[str, Any]]:
    answer = client.post(CHAT, json=chat_body(content, stream=True, **fields))
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text[:1000]
    *chunks, done = [event for event in events_of(answer.text) if event.data is not None]
    assert done.data == "[DONE]"
    for chunk in chunks:
        strict(ChatCompletionChunk, chunk.data)
    return [chunk.data for chunk in chunks]
