"""LiteLLM's proxy, started with the configuration of `easel connect litellm`, and called with OpenAI's library."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from row_support import (
    ANSWER,
    TIMEOUT_S,
    decode_picture,
    fetch_picture,
    free_port,
    printed_lines,
    running_program,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    (folder / "config.yaml").write_text(printed_lines("litellm"))
    command = [str(Path(sys.executable).with_name("litellm")), "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    url = f"http://127.0.0.1:{port}"
    key = f"sk-{secrets.token_hex(16)}"  # It does not start without one.
    environment = {**os.environ, "HOME": str(folder), "LITELLM_MASTER_KEY": key}
    health, log = f"{url}/health/liveliness", folder / "log"
    with running_program(command, health=health, log=log, cwd=folder, env=environment):
        yield OpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT_S, max_retries=0)


def test_the_printed_configuration_lists_both_models(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"primary", "img"}


def test_the_printed_configuration_chats(client: OpenAI) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(model="primary", messages=hello)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == ANSWER
    chunks = client.chat.completions.create(model="primary", messages=hello, stream=True)  # type: ignore[arg-type]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER


def test_the_printed_configuration_draws(client: OpenAI) -> None:
    by_url = client.images.generate(model="img", prompt="a cat", size="256x256", response_format="url")
    assert fetch_picture(by_url.data[0].url).size == (256, 256)
    inline = client.images.generate(model="img", prompt="a cat", size="256x256", response_format="b64_json")
    assert decode_picture(inline.data[0].b64_json).size == (256, 256)
