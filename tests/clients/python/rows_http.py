"""Plain HTTP with `requests` and `curl`: framing that SDKs hide, unusual spellings of edits, and error responses."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import requests
from row_support import (
    SLOW_MODEL,
    TIMEOUT_S,
    Servers,
    assert_only_masked_box_changed,
    assert_red_beside_blue,
    data_url,
    decode_picture,
    fetch_picture,
)

SMALL: dict[str, Any] = {"prompt": "a cat", "size": "256x256"}
STITCH = {"model": "stitch", "response_format": "b64_json"}


def post(url: str, **options: Any) -> requests.Response:
    return requests.post(url, timeout=TIMEOUT_S, **options)


def stream_blocks(servers: Servers, **fields: Any) -> list[str]:
    response = post(f"{servers.normal}/v1/images/generations", json={**SMALL, "stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
    return [block for block in response.text.split("\n\n") if block]


# --- streams ---------------------------------------------------------------------------------------


def test_12_a_stream_in_openais_format_has_named_events_and_no_done(servers: Servers) -> None:
    blocks = stream_blocks(servers, model=SLOW_MODEL, steps=6, partial_images=2)
    for block in (block for block in blocks if not block.startswith(":")):
        event, data = block.split("\n")
        assert data.startswith("data: ")
        assert event == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in "".join(blocks)


def test_13_a_stream_without_partial_pictures_ends_with_done(servers: Servers) -> None:
    blocks = stream_blocks(servers)
    assert blocks[-1] == "data: [DONE]"
    event, data = blocks[-2].split("\n")
    assert event == "event: image_generation.completed"
    # It has GPUStack's keys and OpenAI's, because the request does not show which client sent it.
    completed = json.loads(data.removeprefix("data: "))
    assert type(completed["created"]) is int
    assert (completed["data"][0]["object"], completed["data"][0]["progress"]) == ("image.chunk", 100.0)


# --- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1-openai/image/edit", "/v1-openai/images/edits"])
def test_21_only_the_white_part_of_a_grey_mask_is_redrawn(servers: Servers, path: str) -> None:
    parts = [f"image=@{servers.pictures / 'photo.png'}", f"mask=@{servers.pictures / 'mask_grey.png'}"]
    parts += ["prompt=a red ball", "n=1", "size=256x256", "response_format=b64_json"]
    options = [option for part in parts for option in ("-F", part)]
    curl = subprocess.run(
        ["curl", "-sS", "--fail-with-body", f"{servers.normal}{path}", *options],
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert curl.returncode == 0, curl.stdout + curl.stderr
    response = json.loads(curl.stdout)
    assert_only_masked_box_changed(
        servers.picture("photo.png"), decode_picture(response["data"][0]["b64_json"])
    )


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images", "images[]"])
def test_24_every_spelling_of_the_image_field_is_accepted(servers: Servers, name: str) -> None:
    parts = [(name, ("a.png", servers.picture("photo.png"), "image/png"))]
    response = post(f"{servers.normal}/v1/images/edits", data=SMALL, files=parts)
    assert response.status_code == 200, response.text
    assert decode_picture(response.json()["data"][0]["b64_json"]).size == (256, 256)


JSON_BODIES: dict[str, Any] = {
    "images[].image_url": lambda url: {"images": [{"image_url": url}]},
    "images[].image_url.url": lambda url: {"images": [{"image_url": {"url": url}}]},
    "image": lambda url: {"image": url},
    "image list": lambda url: {"image": [url]},
}


@pytest.mark.parametrize("spelling", JSON_BODIES)
def test_24_an_edit_in_json_accepts_a_data_url_of_more_than_a_megabyte(
    servers: Servers, spelling: str
) -> None:
    url = data_url(servers.picture("large.png"))
    assert len(url) > 1_000_000
    response = post(f"{servers.normal}/v1/images/edits", json={**SMALL, **JSON_BODIES[spelling](url)})
    assert response.status_code == 200, response.text
    assert decode_picture(response.json()["data"][0]["b64_json"]).size == (256, 256)


@pytest.mark.parametrize(
    "names", [["image"] * 2, ["image[]"] * 2, ["image[0]", "image[1]"], ["images"] * 2, ["images[]"] * 2]
)
def test_24_two_images_of_a_form_arrive_in_order_in_every_spelling(
    servers: Servers, names: list[str]
) -> None:
    files = zip(names, ("red.png", "blue.png"), strict=True)
    parts = [(name, (file, servers.picture(file), "image/png")) for name, file in files]
    response = post(f"{servers.failing}/v1/images/edits", data=STITCH, files=parts)
    assert response.status_code == 200, response.text
    assert_red_beside_blue(decode_picture(response.json()["data"][0]["b64_json"]))


TWO_IN_JSON: dict[str, Any] = {
    "images[].image_url": lambda urls: {"images": [{"image_url": url} for url in urls]},
    "images[].image_url.url": lambda urls: {"images": [{"image_url": {"url": url}} for url in urls]},
    "image list": lambda urls: {"image": urls},
}


@pytest.mark.parametrize("spelling", TWO_IN_JSON)
def test_24_two_images_in_json_arrive_in_order(servers: Servers, spelling: str) -> None:
    urls = [data_url(servers.picture(file)) for file in ("red.png", "blue.png")]
    response = post(f"{servers.failing}/v1/images/edits", json={**STITCH, **TWO_IN_JSON[spelling](urls)})
    assert response.status_code == 200, response.text
    assert_red_beside_blue(decode_picture(response.json()["data"][0]["b64_json"]))


def test_24_a_mask_in_json_limits_what_is_redrawn(servers: Servers) -> None:
    images = {"images": [{"image_url": data_url(servers.picture("photo.png"))}]}
    mask = {"mask": {"image_url": data_url(servers.picture("mask_alpha.png"))}}
    response = post(f"{servers.normal}/v1/images/edits", json={**SMALL, **images, **mask})
    assert response.status_code == 200, response.text
    assert_only_masked_box_changed(
        servers.picture("photo.png"), decode_picture(response.json()["data"][0]["b64_json"])
    )


def test_24_a_text_field_of_a_form_accepts_a_data_url_of_more_than_500_kb(servers: Servers) -> None:
    url = data_url(servers.picture("large.png"))
    assert len(url) > 500_000
    response = post(f"{servers.normal}/v1/images/edits", data=SMALL, files={"image": (None, url)})
    assert response.status_code == 200, response.text
    assert decode_picture(response.json()["data"][0]["b64_json"]).size == (256, 256)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "image.image_required"),
        ({"image": ("a.png", b"this is no picture", "image/png")}, "image.invalid_image"),
    ],
)
def test_24_an_edit_without_a_valid_picture_is_refused(servers: Servers, files: Any, code: str) -> None:
    parts = files or {"prompt": (None, "a cat")}
    response = post(f"{servers.normal}/v1/images/edits", data=SMALL if files else None, files=parts)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert code != "image.invalid_image" or response.json()["error"]["message"].startswith("Invalid image")


# --- errors ----------------------------------------------------------------------------------------

INVALID: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "an unknown path": ("GET", "/v1/nope", {}, 404),
    "a wrong method": ("GET", "/v1/images/generations", {}, 405),
    "a wrong method for edits": ("GET", "/v1/images/edits", {}, 405),
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
    "an unterminated form": (
        "POST",
        "/v1/images/edits",
        {"data": b"--x\r\nno", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
    ),
    "an unknown picture": ("GET", "/api/images/cache/6f1b2b52-5e8b-4c8e-9f0a-0d5f5a1c1111.png", {}, 404),
}


@pytest.mark.parametrize("name", INVALID)
def test_35_every_error_is_a_json_envelope(servers: Servers, name: str) -> None:
    method, path, options, status = INVALID[name]
    response = requests.request(method, f"{servers.normal}{path}", timeout=30, **options)
    assert response.status_code == status
    assert_envelope(response)


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits"])
def test_35_a_body_of_200_megabytes_is_refused(servers: Servers, path: str) -> None:
    content_type = "application/json" if "generations" in path else "multipart/form-data; boundary=x"
    response = post(
        f"{servers.normal}{path}", data=bytes(200_000_000), headers={"Content-Type": content_type}
    )
    assert response.status_code == 413
    assert_envelope(response)


def assert_envelope(response: requests.Response) -> None:
    assert response.headers["Content-Type"].split(";")[0] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code", "details"}
    assert "<html" not in response.text.lower()


# --- origins ---------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pictures.example"}


def url_of(response: requests.Response) -> str:
    assert response.status_code == 200, response.text
    url: str = response.json()["data"][0]["url"]
    return url


def test_37_the_url_has_the_host_that_the_client_called(servers: Servers) -> None:
    port = servers.normal.rpartition(":")[2]
    local = url_of(post(f"http://localhost:{port}/v1/images/generations", json=SMALL))
    assert local.startswith(f"http://localhost:{port}/")
    assert fetch_picture(local)
    headers = {"Host": "example.test"}
    named = url_of(post(f"{servers.normal}/v1/images/generations", json=SMALL, headers=headers))
    assert named.startswith("http://example.test/")


def test_37_a_trusted_proxys_forwarded_headers_decide_the_url(servers: Servers) -> None:
    url = url_of(post(f"{servers.proxied}/v1/images/generations", json=SMALL, headers=FORWARDED))
    assert url.startswith("https://pictures.example/")


def test_37_forwarded_headers_of_other_clients_are_ignored(servers: Servers) -> None:
    url = url_of(post(f"{servers.normal}/v1/images/generations", json=SMALL, headers=FORWARDED))
    assert url.startswith(f"{servers.normal}/")


def test_37_a_request_for_an_unknown_host_is_refused(servers: Servers) -> None:
    response = post(f"{servers.normal}/v1/images/generations", json=SMALL, headers={"Host": "evil.example"})
    assert response.status_code == 403
    assert_envelope(response)
