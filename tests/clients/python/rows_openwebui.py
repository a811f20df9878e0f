"""What Open WebUI does with its OpenAI image engine, reproduced in a few lines: it joins URLs without normalizing them,
prefers a url to base64, and keeps a picture only if its content type is an image type. It refuses private addresses, so
there must be no url where it requests base64."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import requests
from row_support import TIMEOUT_S, Servers, assert_red_beside_blue, decode_picture

HEADERS = {"Authorization": "Bearer unused"}


def pictures_of(response: requests.Response) -> list[tuple[bytes, str]]:
    """Bytes and content type of each picture, read as Open WebUI reads a response."""
    response.raise_for_status()
    pictures = []
    for item in response.json()["data"]:
        if url := item.get("url"):
            picture = requests.get(url, headers=HEADERS, timeout=60)
            picture.raise_for_status()
            content_type = picture.headers["Content-Type"].split(";")[0]
            assert content_type.startswith("image/")
            pictures.append((picture.content, content_type))
        else:
            pictures.append((base64.b64decode(item["b64_json"]), "image/png"))
    return pictures


def assert_pngs(pictures: list[tuple[bytes, str]], n: int = 1) -> None:
    assert [(picture[:8], content_type) for picture, content_type in pictures] == [
        (b"\x89PNG\r\n\x1a\n", "image/png")
    ] * n


@pytest.mark.parametrize("base", ["/v1", "/v1/"])
def test_33_a_generation_in_base64_has_no_url(servers: Servers, base: str) -> None:
    body = {
        "model": "sdxl-turbo",
        "prompt": "a cat",
        "n": 1,
        "size": "256x256",
        "response_format": "b64_json",
    }
    response = requests.post(
        f"{servers.normal}{base}/images/generations", json=body, headers=HEADERS, timeout=TIMEOUT_S
    )
    assert "url" not in response.json()["data"][0]
    assert_pngs(pictures_of(response))


def test_33_a_gpt_image_model_gets_base64_without_response_format(servers: Servers) -> None:
    body = {"model": "gpt-image-1", "prompt": "a cat", "n": 1, "size": "auto"}
    response = requests.post(
        f"{servers.normal}/v1/images/generations", json=body, headers=HEADERS, timeout=TIMEOUT_S
    )
    assert "url" not in response.json()["data"][0]
    assert_pngs(pictures_of(response))


@pytest.mark.parametrize("field", ["image", "image[]"])
@pytest.mark.parametrize("base", ["/v1", "/v1/"])
def test_33_an_edit_accepts_one_image_or_a_list(servers: Servers, field: str, base: str) -> None:
    text = {
        "model": "sdxl-turbo",
        "prompt": "a cat",
        "n": "1",
        "size": "256x256",
        "response_format": "b64_json",
    }
    # Open WebUI sends its text fields with a content type.
    parts: list[tuple[str, Any]] = [
        (name, (None, value, "text/plain; charset=utf-8")) for name, value in text.items()
    ]
    parts.append((field, ("4c2e.png", servers.picture("photo.png"), "image/png")))
    response = requests.post(
        f"{servers.normal}{base}/images/edits", files=parts, headers=HEADERS, timeout=TIMEOUT_S
    )
    assert_pngs(pictures_of(response))


def test_33_several_images_arrive_in_order(servers: Servers) -> None:
    text = {"model": "stitch", "prompt": "", "n": "1", "response_format": "b64_json"}
    parts: list[tuple[str, Any]] = [
        (name, (None, value, "text/plain; charset=utf-8")) for name, value in text.items()
    ]
    parts += [("image[]", (file, servers.picture(file), "image/png")) for file in ("red.png", "blue.png")]
    response = requests.post(
        f"{servers.failing}/v1/images/edits", files=parts, headers=HEADERS, timeout=TIMEOUT_S
    )
    response.raise_for_status()
    assert_red_beside_blue(decode_picture(response.json()["data"][0]["b64_json"]))


def test_33_a_url_can_be_fetched_from_the_same_origin(servers: Servers) -> None:
    body = {"model": "sdxl-turbo", "prompt": "a cat", "n": 2, "size": "256x256"}
    response = requests.post(
        f"{servers.normal}/v1/images/generations", json=body, headers=HEADERS, timeout=TIMEOUT_S
    )
    assert_pngs(pictures_of(response), 2)
