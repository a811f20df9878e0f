"""Anthropic's own SDK for Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, APIStatusError, NotFoundError
from row_support import CHAT_MODELS, CUT_PROMPT, TIMEOUT_S, Servers, assert_answer

HELLO: Any = [{"role": "user", "content": "Hello"}]
each_chat_model = pytest.mark.parametrize("model", CHAT_MODELS)


@pytest.fixture
def client(servers: Servers) -> Iterator[Anthropic]:
    with Anthropic(base_url=servers.llm, api_key="unused", timeout=TIMEOUT_S) as made:
        yield made


@each_chat_model
def test_47_a_message_is_answered(client: Anthropic, model: str) -> None:
    message: Any = client.messages.create(model=model, max_tokens=8, messages=HELLO)
    assert message.stop_reason
    assert_answer(message.content[0].text, model)


@each_chat_model
def test_47_a_message_is_streamed(client: Anthropic, model: str) -> None:
    with client.messages.stream(model=model, max_tokens=8, messages=HELLO) as stream:
        assert_answer("".join(stream.text_stream), model)
        assert stream.get_final_message().stop_reason


@each_chat_model
def test_47_tokens_are_counted(client: Anthropic, model: str) -> None:
    assert client.messages.count_tokens(model=model, messages=HELLO).input_tokens > 0


def test_47_an_unknown_model_is_a_404_in_anthropics_form(client: Anthropic) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.messages.create(model="nope", max_tokens=8, messages=HELLO)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["code"]) == ("error", "dispatch.no_route")


def test_47_an_error_within_the_stream_is_raised(client: Anthropic) -> None:
    messages: Any = [{"role": "user", "content": CUT_PROMPT}]
    with (
        pytest.raises(APIStatusError, match="Overloaded"),
        client.messages.stream(model="primary", max_tokens=8, messages=messages) as stream,
    ):
        list(stream.text_stream)
