"""Plain HTTP, by `requests` and `curl`: framing that SDKs hide, odd spellings of edits, and answers that go wrong."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import requests
from served import GIVE_UP_S, SLOW_MODEL, Served, assert_only_the_hole_changed, data_url, fetched, opened

SMALL: dict[str, Any] = {"prompt": "a cat", "size": "256x256"}


def post(url: str, **what: Any) -> requests.Response:
    return requests.post(url, timeout=GIVE_UP_S, **what)


def streamed(served: Served, **fields: Any) -> list[str]:
    answer = post(f"{served.normal}/v1/images/generations", json={**SMALL, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].split(";")[0] == "text/event-stream"
    return [block for block in answer.text.split("\n\n") if block]


# --- streams ---------------------------------------------------------------------------------------


def test_12_openais_framing_names_its_events_and_has_no_done(served: Served) -> None:
    blocks = streamed(served, model=SLOW_MODEL, steps=6, partial_images=2)
    for block in (block for block in blocks if not block.startswith(":")):
        event, data = block.split("\n")
        assert data.startswith("data: ")
        assert event == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in "".join(blocks)


def test_13_a_plain_stream_ends_with_done(served: Served) -> None:
    blocks = streamed(served)
    assert blocks[-1] == "data: [DONE]"
    event, data = blocks[-2].split("\n")
    assert event == "event: image_generation.completed"
    # GPUStack's keys are beside OpenAI's where nothing says which of the two is listening.
    completed = json.loads(data.removeprefix("data: "))
    assert type(completed["created"]) is int
    assert (completed["data"][0]["object"], completed["data"][0]["progress"]) == ("image.chunk", 100.0)


# --- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1-openai/image/edit", "/v1-openai/images/edits"])
def test_21_only_what_a_grey_mask_shows_white_is_drawn(served: Served, path: str) -> None:
    forms = [f"image=@{served.pictures / 'photo.png'}", f"mask=@{served.pictures / 'mask_grey.png'}"]
    forms += ["prompt=a red ball", "n=1", "size=256x256", "response_format=b64_json"]
    options = [option for form in forms for option in ("-F", form)]
    curl = subprocess.run(
        ["curl", "-sS", "--fail-with-body", f"{served.normal}{path}", *options],
        capture_output=True,
        timeout=GIVE_UP_S,
    )
    assert curl.returncode == 0, curl.stdout + curl.stderr
    answer = json.loads(curl.stdout)
    assert_only_the_hole_changed(served.picture("photo.png"), opened(answer["data"][0]["b64_json"]))


@pytest.mark.parametrize(
    "names", [["image", "image"], ["image[]"], ["image[0]", "image[1]"], ["images"], ["images[]"] * 2]
)
def test_24_every_spelling_of_the_image_field_is_an_image(served: Served, names: list[str]) -> None:
    parts = [(name, ("a.png", served.picture("photo.png"), "image/png")) for name in names]
    answer = post(f"{served.normal}/v1/images/edits", data=SMALL, files=parts)
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (256, 256)


JSON_BODIES: dict[str, Any] = {
    "images[].image_url": lambda url: {"images": [{"image_url": url}]},
    "images[].image_url.url": lambda url: {"images": [{"image_url": {"url": url}}]},
    "image": lambda url: {"image": url},
    "image list": lambda url: {"image": [url, url]},
}


@pytest.mark.parametrize("form", JSON_BODIES)
def test_24_an_edit_in_json_takes_a_data_url_of_more_than_a_megabyte(served: Served, form: str) -> None:
    url = data_url(served.picture("large.png"))
    assert len(url) > 1_000_000
    answer = post(f"{served.normal}/v1/images/edits", json={**SMALL, **JSON_BODIES[form](url)})
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (256, 256)


def test_24_a_mask_in_json_is_a_mask(served: Served) -> None:
    images = {"images": [{"image_url": data_url(served.picture("photo.png"))}]}
    mask = {"mask": {"image_url": data_url(served.picture("mask_alpha.png"))}}
    answer = post(f"{served.normal}/v1/images/edits", json={**SMALL, **images, **mask})
    assert answer.status_code == 200, answer.text
    assert_only_the_hole_changed(served.picture("photo.png"), opened(answer.json()["data"][0]["b64_json"]))


def test_24_a_text_field_of_a_form_takes_a_data_url_of_more_than_500_kb(served: Served) -> None:
    url = data_url(served.picture("large.png"))
    assert len(url) > 500_000
    answer = post(f"{served.normal}/v1/images/edits", data=SMALL, files={"image": (None, url)})
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (256, 256)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "image.image_required"),
        ({"image": ("a.png", b"this is no picture", "image/png")}, "image.invalid_image"),
    ],
)
def test_24_an_edit_without_a_picture_is_told_so(served: Served, files: Any, code: str) -> None:
    parts = files or {"prompt": (None, "a cat")}
    answer = post(f"{served.normal}/v1/images/edits", data=SMALL if files else None, files=parts)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert code != "image.invalid_image" or answer.json()["error"]["message"].startswith("Invalid image")


# --- errors ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "an unknown path": ("GET", "/v1/nope", {}, 404),
    "a wrong method": ("GET", "/v1/images/generations", {}, 405),
    "a wrong method of edits": ("GET", "/v1/images/edits", {}, 405),
    "bad JSON": (
        "POST",
        "/v1/images/generations",
        {"data": b"{", "headers": {"Content-Type": "application/json"}},
        400,
    ),
    "bad JSON for edits": (
        "POST",
        "/v1/images/edits",
        {"data": b"{", "headers": {"Content-Type": "application/json"}},
        400,
    ),
    "a form without an end": (
        "POST",
        "/v1/images/edits",
        {"data": b"--x\r\nno", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
    ),
    "an old picture": ("GET", "/api/images/cache/6f1b2b52-5e8b-4c8e-9f0a-0d5f5a1c1111.png", {}, 404),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_35_whatever_goes_wrong_is_told_in_json(served: Served, wrong: str) -> None:
    method, path, what, status = WRONG[wrong]
    answer = requests.request(method, f"{served.normal}{path}", timeout=30, **what)
    assert answer.status_code == status
    assert_envelope(answer)


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits"])
def test_35_a_body_of_200_megabytes_is_too_large(served: Served, path: str) -> None:
    kind = "application/json" if "generations" in path else "multipart/form-data; boundary=x"
    answer = post(f"{served.normal}{path}", data=bytes(200_000_000), headers={"Content-Type": kind})
    assert answer.status_code == 413
    assert_envelope(answer)


def assert_envelope(answer: requests.Response) -> None:
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code", "details"}
    assert "<html" not in answer.text.lower()


# --- origins ---------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pictures.example"}


def url_of(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["data"][0]["url"]
    return url


def test_37_the_url_has_the_host_that_the_client_called(served: Served) -> None:
    port = served.normal.rpartition(":")[2]
    local = url_of(post(f"http://localhost:{port}/v1/images/generations", json=SMALL))
    assert local.startswith(f"http://localhost:{port}/")
    assert fetched(local)
    headers = {"Host": "example.test"}
    named = url_of(post(f"{served.normal}/v1/images/generations", json=SMALL, headers=headers))
    assert named.startswith("http://example.test/")


def test_37_a_proxy_of_ours_says_what_the_client_called(served: Served) -> None:
    url = url_of(post(f"{served.proxied}/v1/images/generations", json=SMALL, headers=FORWARDED))
    assert url.startswith("https://pictures.example/")


def test_37_nobody_else_is_believed_about_it(served: Served) -> None:
    url = url_of(post(f"{served.normal}/v1/images/generations", json=SMALL, headers=FORWARDED))
    assert url.startswith(f"{served.normal}/")


def test_37_a_host_that_is_not_ours_gets_no_picture(served: Served) -> None:
    answer = post(f"{served.normal}/v1/images/generations", json=SMALL, headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert_envelope(answer)
