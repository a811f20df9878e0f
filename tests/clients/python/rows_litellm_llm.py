"""LiteLLM: chat, streams, tools, embeddings and audio, with its own models of the answers."""

from __future__ import annotations

import io
from typing import Any

import litellm
import pytest
from row_support import (
    ANSWER,
    AUDIO,
    CHAT_MODELS,
    EMBEDDING_MODELS,
    TIMEOUT_S,
    WEATHER_TOOL,
    Servers,
    assert_answer,
    assert_vector,
)

HELLO = [{"role": "user", "content": "Hello"}]
each_chat_model = pytest.mark.parametrize("model", CHAT_MODELS)


def options(servers: Servers, model: str) -> dict[str, Any]:
    return {
        "model": f"openai/{model}",
        "api_base": f"{servers.llm}/v1",
        "api_key": "unused",
        "timeout": TIMEOUT_S,
    }


@each_chat_model
def test_49_a_chat_is_answered(servers: Servers, model: str) -> None:
    answer: Any = litellm.completion(messages=HELLO, max_tokens=8, **options(servers, model))
    assert_answer(answer.choices[0].message.content, model)


@each_chat_model
def test_49_a_chat_is_streamed(servers: Servers, model: str) -> None:
    chunks: Any = litellm.completion(messages=HELLO, max_tokens=8, stream=True, **options(servers, model))
    assert_answer("".join(chunk.choices[0].delta.content or "" for chunk in chunks), model)


def test_49_a_tool_is_called(servers: Servers) -> None:
    answer: Any = litellm.completion(messages=HELLO, tools=[WEATHER_TOOL], **options(servers, "primary"))
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city":"Paris"}'


@pytest.mark.parametrize("model", EMBEDDING_MODELS)
def test_49_texts_are_embedded(servers: Servers, model: str) -> None:
    answer: Any = litellm.embedding(input=["a"], **options(servers, model))
    assert_vector(answer.data[0]["embedding"], model)


def test_49_audio_passes_in_both_directions(servers: Servers) -> None:
    speech = litellm.speech(input="Hello", voice="af_heart", **options(servers, "speaks"))
    assert speech.content == AUDIO
    file = io.BytesIO(AUDIO)
    file.name = "a.mp3"
    assert litellm.transcription(file=file, **options(servers, "hears")).text == ANSWER


def test_49_an_unknown_model_is_an_error_with_easels_message(servers: Servers) -> None:
    with pytest.raises(litellm.BadRequestError, match="nope"):
        litellm.completion(messages=HELLO, max_retries=0, **options(servers, "nope"))
