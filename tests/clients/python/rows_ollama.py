"""Ollama's own client for Python."""

from __future__ import annotations

import pytest
from ollama import Client, ResponseError
from row_support import ANSWER, VECTOR, Servers

HELLO = [{"role": "user", "content": "Hello"}]
EACH_NAME = pytest.mark.parametrize("model", ["talks", "primary"])


@pytest.fixture
def client(servers: Servers) -> Client:
    return Client(host=servers.llm)


@EACH_NAME
def test_50_a_chat_is_answered_and_streamed(client: Client, model: str) -> None:
    assert client.chat(model=model, messages=HELLO).message.content == ANSWER
    parts = list(client.chat(model=model, messages=HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == ANSWER
    assert parts[-1].done


@EACH_NAME
def test_50_a_text_is_generated(client: Client, model: str) -> None:
    assert client.generate(model=model, prompt="Hello").response == ANSWER
    assert "".join(part.response for part in client.generate(model=model, prompt="x", stream=True)) == ANSWER


def test_50_texts_are_embedded(client: Client) -> None:
    assert [list(vector) for vector in client.embed(model="embeds", input="a").embeddings] == [VECTOR]


def test_50_models_are_listed_and_shown(client: Client) -> None:
    assert {"talks", "primary"} <= {str(model.model) for model in client.list().models}
    assert client.show("primary").capabilities == ["completion"]


def test_50_an_unknown_model_is_a_404(client: Client) -> None:
    with pytest.raises(ResponseError, match="nope") as caught:
        client.chat(model="nope", messages=HELLO)
    assert caught.value.status_code == 404
