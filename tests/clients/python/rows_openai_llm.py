"""Chat, tools, embeddings, audio, models and responses with OpenAI's own Python SDK. The same tests run with every major
version of it."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from openai import APIError, NotFoundError, OpenAI
from row_support import (
    ANSWER,
    AUDIO,
    CHAT_MODELS,
    CUT_PROMPT,
    EMBEDDING_MODELS,
    TIMEOUT_S,
    WEATHER_TOOL,
    Servers,
    assert_answer,
    assert_vector,
    decode_picture,
    fetch_picture,
)

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [WEATHER_TOOL]
IMAGE_TOOL = {"type": "image_generation", "size": "256x256", "model": "sd-1.5"}
each_chat_model = pytest.mark.parametrize("model", CHAT_MODELS)


@pytest.fixture
def client(servers: Servers) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{servers.llm}/v1", api_key="unused", timeout=TIMEOUT_S) as made:
        yield made


@each_chat_model
def test_39_a_chat_is_answered(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8)
    assert_answer(answer.choices[0].message.content, model)
    assert answer.usage
    assert answer.usage.total_tokens > 0


def test_39_a_chat_and_a_picture_come_from_one_address(client: OpenAI) -> None:
    assert (
        client.chat.completions.create(model="primary", messages=HELLO).choices[0].message.content == ANSWER
    )
    picture = client.images.generate(model="img", prompt="a cat", size="256x256", response_format="b64_json")
    assert picture.data
    assert decode_picture(picture.data[0].b64_json).size == (256, 256)


@each_chat_model
def test_40_a_streamed_chat_is_complete(client: OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert_answer(text, model)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 1
    assert chunks[-1].usage


@each_chat_model
def test_40_a_text_is_completed(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="Hello", max_tokens=8)
    assert_answer(answer.choices[0].text, model)


def test_41_a_tool_is_called_and_its_result_answered(client: OpenAI) -> None:
    first = client.chat.completions.create(model="primary", messages=HELLO, tools=TOOLS).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls
    call: Any = first.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Paris"}')
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*HELLO, first.message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(model="primary", messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == "It is sunny"


def test_41_a_streamed_tool_call_is_complete(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="primary", messages=HELLO, tools=TOOLS, stream=True)
    calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join((call.function and call.function.arguments) or "" for call in calls) == '{"city":"Paris"}'


@pytest.mark.parametrize("encoding", ["float", "base64", None])
@pytest.mark.parametrize("model", EMBEDDING_MODELS)
def test_42_texts_are_embedded(client: OpenAI, model: str, encoding: Any) -> None:
    options: dict[str, Any] = {"encoding_format": encoding} if encoding else {}
    answer = client.embeddings.create(model=model, input=["a", "b"], **options)
    assert [item.index for item in answer.data] == [0, 1]
    if encoding == "base64":
        assert isinstance(answer.data[0].embedding, str)
    else:
        assert_vector(answer.data[0].embedding, model)


def test_43_speech_is_streamed_byte_by_byte(client: OpenAI) -> None:
    request: Any = {"model": "speaks", "voice": "af_heart", "input": "Hello"}
    assert client.audio.speech.create(**request).content == AUDIO
    with client.audio.speech.with_streaming_response.create(**request) as response:
        assert response.headers["content-type"] == "audio/mpeg"
        assert b"".join(response.iter_bytes()) == AUDIO


def test_43_audio_reaches_the_upstream_as_it_was_sent(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(model="hears", file=("a.mp3", io.BytesIO(AUDIO)))
    assert answer.text == ANSWER


def test_44_models_of_both_kinds_are_listed_and_retrieved(client: OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert {*CHAT_MODELS, *EMBEDDING_MODELS, "img", "sdxl-turbo"} <= set(ids)
    assert len(ids) == len(set(ids))
    for name in (*CHAT_MODELS, "img"):
        model = client.models.retrieve(name)
        assert (model.id, model.object, type(model.created)) == (name, "model", int)
        assert model.owned_by


@each_chat_model
def test_45_a_response_is_created(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello", max_output_tokens=8)
    assert answer.status == "completed"
    assert_answer(answer.output_text, model)


@each_chat_model
def test_45_a_response_is_streamed(client: OpenAI, model: str) -> None:
    events = list(client.responses.create(model=model, input="Hello", max_output_tokens=8, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert_answer(text, model)
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize("choice", ["auto", {"type": "image_generation"}])
def test_52_a_response_has_a_picture_that_a_model_or_the_client_asks_for(client: OpenAI, choice: Any) -> None:
    request: Any = {"model": "primary", "input": "a hat", "tools": [IMAGE_TOOL], "tool_choice": choice}
    prompt = "a red cat" if choice == "auto" else "a hat"
    answer: Any = client.responses.create(**request)
    (item,) = answer.output
    assert (item.type, item.status, item.revised_prompt) == ("image_generation_call", "completed", prompt)
    assert decode_picture(item.result).size == (256, 256)
    events: Any = list(client.responses.create(**request, stream=True))
    types = [event.type for event in events]
    assert "response.image_generation_call.completed" in types
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert types[-1] == "response.completed"
    assert decode_picture(events[-1].response.output[0].result).size == (256, 256)


def test_52_a_chat_with_an_image_model_has_a_picture(client: OpenAI) -> None:
    request: Any = {"model": "img", "messages": HELLO, "extra_body": {"size": "256x256"}}
    answer: Any = client.chat.completions.create(**request)
    (image,) = answer.choices[0].message.images
    assert decode_picture(image["image_url"]["url"].partition(",")[2]).size == (256, 256)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**request, stream=True))  # fmt: skip
    assert fetch_picture(text.removeprefix("![image](").removesuffix(")")).size == (256, 256)


def test_46_an_unknown_model_is_a_404_that_is_not_retried(client: OpenAI, servers: Servers) -> None:
    request_id = uuid.uuid4().hex
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(
            model="nope", messages=HELLO, extra_headers={"x-request-id": request_id}
        )
    assert (caught.value.code, caught.value.param) == ("dispatch.no_route", "model")
    assert servers.received_requests("llm", request_id) == ["POST /v1/chat/completions 404"]


def test_46_a_stream_that_the_upstream_cuts_raises_an_error(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": CUT_PROMPT}]
    chunks: list[Any] = []
    stream = client.chat.completions.create(model="primary", messages=messages, stream=True)
    with pytest.raises(APIError, match="Failed to read connection") as caught:
        chunks.extend(stream)
    assert (caught.value.code, len(chunks)) == ("dispatch.upstream_failed", 2)
