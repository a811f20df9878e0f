"""LiteLLM: checks answers with its own models, and translates errors into its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import litellm
import openai
import pytest
from served import GIVE_UP_S, SLOW_MODEL, Served, fetched, opened, wait_until


def at(url: str) -> dict[str, Any]:
    return {"model": "openai/sdxl-turbo", "api_base": f"{url}/v1", "api_key": "unused", "timeout": GIVE_UP_S}


class Impatient(openai.OpenAI):
    """Tries once. LiteLLM sets two retries on every client that it draws pictures with, whatever it is told."""

    max_retries = property(lambda self: 0, lambda self, number: None)


def impatient(url: str) -> dict[str, Any]:
    return {**at(url), "client": Impatient(base_url=f"{url}/v1", api_key="unused")}


def assert_an_image_response(answer: Any) -> None:
    assert isinstance(answer, litellm.ImageResponse)
    assert type(answer.created) is int
    assert type(answer.usage.total_tokens) is int
    item = answer.data[0]
    assert (fetched(item.url) if item.url else opened(item.b64_json)).size == (256, 256)


def test_26_a_generation_is_an_image_response(served: Served) -> None:
    assert_an_image_response(litellm.image_generation(prompt="a cat", size="256x256", **at(served.normal)))


def test_26_fields_that_litellm_does_not_know_are_passed_on(served: Served) -> None:
    answer = litellm.image_generation(prompt="a cat", size="256x256", seed=7, steps=2, **at(served.normal))
    assert_an_image_response(answer)


@pytest.mark.parametrize("form", ["file", "list", "bytes"])
def test_26_an_edit_is_an_image_response(served: Served, form: str) -> None:
    with open(served.pictures / "photo.png", "rb") as file:
        image: Any = {"file": file, "list": [file], "bytes": file.read() if form == "bytes" else None}[form]
        answer = litellm.image_edit(image=image, prompt="a cat", size="256x256", **at(served.normal))
    assert_an_image_response(answer)


def test_26_an_asynchronous_edit_is_an_image_response(served: Served) -> None:
    image = served.picture("photo.png")
    edit = litellm.aimage_edit(image=image, prompt="a cat", size="256x256", **at(served.normal))
    assert_an_image_response(asyncio.run(edit))


def test_26_a_variation_is_an_image_response(served: Served) -> None:
    with open(served.pictures / "photo.png", "rb") as image:
        answer = litellm.image_variation(image=image, n=1, size="256x256", **at(served.normal))
    assert_an_image_response(answer)


def test_27_an_unknown_model_is_a_bad_request_with_our_message(served: Served) -> None:
    with pytest.raises(litellm.BadRequestError, match="nope"):
        litellm.image_generation(prompt="a cat", **{**at(served.normal), "model": "openai/nope"})


def test_27_an_engine_that_is_down_is_service_unavailable(served: Served) -> None:
    with pytest.raises(litellm.ServiceUnavailableError):
        litellm.image_generation(prompt="a cat", **impatient(served.down))


def test_27_a_full_queue_is_a_rate_limit(served: Served) -> None:
    slow = {"model": SLOW_MODEL, "prompt": "a slow cat", "size": "256x256", "steps": served.slow_steps}
    with contextlib.ExitStack() as waiting:
        for _ in range(2):
            connection = http.client.HTTPConnection(urlsplit(served.slow).netloc)
            waiting.callback(connection.close)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/images/generations", json.dumps(slow), headers)
        wait_until(lambda: served.jobs() == 2)
        with pytest.raises(litellm.RateLimitError):
            litellm.image_generation(prompt="a cat", **impatient(served.slow))
    wait_until(lambda: served.jobs() == 0)
