"""What Open WebUI does with its OpenAI image engine, told again in a few lines: it joins addresses carelessly, prefers a
url to base64, and keeps a picture only when its type says that it is one. It refuses private addresses, so where it asks
for base64 there must be no url."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import requests
from served import GIVE_UP_S, Served

HEADERS = {"Authorization": "Bearer unused"}


def pictures_of(answer: requests.Response) -> list[tuple[bytes, str]]:
    """Bytes and type of each picture, by its way of reading an answer."""
    answer.raise_for_status()
    found = []
    for item in answer.json()["data"]:
        if url := item.get("url"):
            picture = requests.get(url, headers=HEADERS, timeout=30)
            picture.raise_for_status()
            kind = picture.headers["Content-Type"].split(";")[0]
            assert kind.startswith("image/")
            found.append((picture.content, kind))
        else:
            found.append((base64.b64decode(item["b64_json"]), "image/png"))
    return found


def assert_pngs(pictures: list[tuple[bytes, str]], n: int = 1) -> None:
    assert [(picture[:8], kind) for picture, kind in pictures] == [(b"\x89PNG\r\n\x1a\n", "image/png")] * n


@pytest.mark.parametrize("base", ["/v1", "/v1/"])
def test_33_a_generation_in_base64_has_no_url(served: Served, base: str) -> None:
    body = {
        "model": "sdxl-turbo",
        "prompt": "a cat",
        "n": 1,
        "size": "256x256",
        "response_format": "b64_json",
    }
    answer = requests.post(
        f"{served.normal}{base}/images/generations", json=body, headers=HEADERS, timeout=GIVE_UP_S
    )
    assert "url" not in answer.json()["data"][0]
    assert_pngs(pictures_of(answer))


def test_33_a_gpt_image_name_is_not_told_a_form_and_gets_base64(served: Served) -> None:
    body = {"model": "gpt-image-1", "prompt": "a cat", "n": 1, "size": "auto"}
    answer = requests.post(
        f"{served.normal}/v1/images/generations", json=body, headers=HEADERS, timeout=GIVE_UP_S
    )
    assert "url" not in answer.json()["data"][0]
    assert_pngs(pictures_of(answer))


@pytest.mark.parametrize("field", ["image", "image[]"])
@pytest.mark.parametrize("base", ["/v1", "/v1/"])
def test_33_an_edit_of_one_image_or_of_a_list(served: Served, field: str, base: str) -> None:
    text = {
        "model": "sdxl-turbo",
        "prompt": "a cat",
        "n": "1",
        "size": "256x256",
        "response_format": "b64_json",
    }
    # Its text fields carry a content type of their own.
    parts: list[tuple[str, Any]] = [
        (name, (None, value, "text/plain; charset=utf-8")) for name, value in text.items()
    ]
    parts += [(field, ("4c2e.png", served.picture("photo.png"), "image/png"))] * (2 if "[]" in field else 1)
    answer = requests.post(
        f"{served.normal}{base}/images/edits", files=parts, headers=HEADERS, timeout=GIVE_UP_S
    )
    assert_pngs(pictures_of(answer))


def test_33_a_url_answer_can_be_fetched_from_the_same_origin(served: Served) -> None:
    body = {"model": "sdxl-turbo", "prompt": "a cat", "n": 2, "size": "256x256"}
    answer = requests.post(
        f"{served.normal}/v1/images/generations", json=body, headers=HEADERS, timeout=GIVE_UP_S
    )
    assert_pngs(pictures_of(answer), 2)
