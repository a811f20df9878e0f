"""LangChain's classes for OpenAI: chat, streams, tools and embeddings."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from row_support import (
    CHAT_MODELS,
    EMBEDDING_MODELS,
    TIMEOUT_S,
    WEATHER_TOOL,
    Servers,
    assert_answer,
    assert_vector,
)

each_chat_model = pytest.mark.parametrize("model", CHAT_MODELS)


def chat_model(servers: Servers, model: str) -> ChatOpenAI:
    options: dict[str, Any] = {"api_key": "unused", "max_tokens": 8, "timeout": TIMEOUT_S}
    return ChatOpenAI(model=model, base_url=f"{servers.llm}/v1", **options)


@each_chat_model
def test_48_a_chat_is_answered(servers: Servers, model: str) -> None:
    assert_answer(str(chat_model(servers, model).invoke("Hello").content), model)


@each_chat_model
def test_48_a_chat_is_streamed(servers: Servers, model: str) -> None:
    chunks = chat_model(servers, model).stream("Hello")
    assert_answer("".join(str(chunk.content) for chunk in chunks), model)


def test_48_a_tool_is_called(servers: Servers) -> None:
    answer: Any = chat_model(servers, "primary").bind_tools([WEATHER_TOOL]).invoke("Hello")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("weather", {"city": "Paris"})]


@pytest.mark.parametrize("model", EMBEDDING_MODELS)
def test_48_texts_are_embedded(servers: Servers, model: str) -> None:
    options: dict[str, Any] = {"api_key": "unused", "check_embedding_ctx_length": False}
    embeddings = OpenAIEmbeddings(model=model, base_url=f"{servers.llm}/v1", **options)
    for vector in embeddings.embed_documents(["a", "b"]):
        assert_vector(vector, model)
