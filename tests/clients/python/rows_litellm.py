"""LiteLLM: validates responses with its own models and raises its own errors."""

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
from row_support import (
    SLOW_MODEL,
    TIMEOUT_S,
    Servers,
    assert_red_beside_blue,
    decode_picture,
    fetch_picture,
    wait_until,
)


def litellm_options(url: str) -> dict[str, Any]:
    return {"model": "openai/sdxl-turbo", "api_base": f"{url}/v1", "api_key": "unused", "timeout": TIMEOUT_S}


class ClientWithoutRetries(openai.OpenAI):
    """Sends each request once. LiteLLM sets two retries on every client that it uses for pictures, regardless of
    its options."""

    max_retries = property(lambda self: 0, lambda self, number: None)


def options_without_retries(url: str) -> dict[str, Any]:
    return {**litellm_options(url), "client": ClientWithoutRetries(base_url=f"{url}/v1", api_key="unused")}


def assert_image_response(response: Any) -> None:
    assert isinstance(response, litellm.ImageResponse)
    assert type(response.created) is int
    assert type(response.usage.total_tokens) is int
    item = response.data[0]
    assert (fetch_picture(item.url) if item.url else decode_picture(item.b64_json)).size == (256, 256)


def test_26_a_generation_returns_an_image_response(servers: Servers) -> None:
    assert_image_response(
        litellm.image_generation(prompt="a cat", size="256x256", **litellm_options(servers.normal))
    )


def test_26_fields_that_litellm_does_not_know_are_passed_on(servers: Servers) -> None:
    response = litellm.image_generation(
        prompt="a cat", size="256x256", seed=7, steps=2, **litellm_options(servers.normal)
    )
    assert_image_response(response)


@pytest.mark.parametrize("kind", ["file", "list", "bytes"])
def test_26_an_edit_returns_an_image_response(servers: Servers, kind: str) -> None:
    with open(servers.pictures / "photo.png", "rb") as file:
        image: Any = {"file": file, "list": [file], "bytes": file.read() if kind == "bytes" else None}[kind]
        response = litellm.image_edit(
            image=image, prompt="a cat", size="256x256", **litellm_options(servers.normal)
        )
    assert_image_response(response)


def test_26_several_images_arrive_in_order(servers: Servers) -> None:
    images = [servers.picture("red.png"), servers.picture("blue.png")]
    options = {**litellm_options(servers.failing), "model": "openai/stitch", "response_format": "b64_json"}
    response = litellm.image_edit(image=images, prompt="", **options)
    assert isinstance(response, litellm.ImageResponse)
    assert_red_beside_blue(decode_picture(response.data[0].b64_json))


def test_26_an_asynchronous_edit_returns_an_image_response(servers: Servers) -> None:
    image = servers.picture("photo.png")
    edit = litellm.aimage_edit(image=image, prompt="a cat", size="256x256", **litellm_options(servers.normal))
    assert_image_response(asyncio.run(edit))


def test_26_a_variation_returns_an_image_response(servers: Servers) -> None:
    with open(servers.pictures / "photo.png", "rb") as image:
        response = litellm.image_variation(
            image=image, n=1, size="256x256", **litellm_options(servers.normal)
        )
    assert_image_response(response)


def test_27_an_unknown_model_is_a_bad_request_with_easels_message(servers: Servers) -> None:
    with pytest.raises(litellm.BadRequestError, match="nope"):
        litellm.image_generation(
            prompt="a cat", **{**litellm_options(servers.normal), "model": "openai/nope"}
        )


def test_27_an_engine_that_is_down_is_service_unavailable(servers: Servers) -> None:
    with pytest.raises(litellm.ServiceUnavailableError):
        litellm.image_generation(prompt="a cat", **options_without_retries(servers.down))


def test_27_a_full_queue_is_a_rate_limit_error(servers: Servers) -> None:
    slow = {"model": SLOW_MODEL, "prompt": "a slow cat", "size": "256x256", "steps": servers.slow_steps}
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = http.client.HTTPConnection(urlsplit(servers.slow).netloc)
            stack.callback(connection.close)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/images/generations", json.dumps(slow), headers)
        wait_until(lambda: servers.jobs() == 2)
        with pytest.raises(litellm.RateLimitError):
            litellm.image_generation(prompt="a cat", **options_without_retries(servers.slow))
    wait_until(lambda: servers.jobs() == 0)
