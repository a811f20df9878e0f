"""Requests for larger pictures and for a transparent background."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

PATH = "/v1/images/generations"
BASE = {"prompt": "a cat", "size": "256x256", "response_format": "b64_json"}


def drawn(client: FlaskClient, **fields: Any) -> tuple[Image.Image, dict[str, Any]]:
    response = client.post(PATH, json={**BASE, **fields})
    assert response.status_code == 200, response.text[:400]
    body = response.get_json()
    return Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))), body


@pytest.mark.parametrize(
    ("field", "value", "side"),
    [("upscale", 2, 512), ("upscale", "4", 1024), ("upscale_factor", 2.0, 512), ("upscale_by", 4, 1024)],
)
def test_a_picture_is_enlarged(client: FlaskClient, field: str, value: Any, side: int) -> None:
    picture, body = drawn(client, **{field: value})
    assert picture.size == (side, side)
    assert body["size"] == f"{side}x{side}"
    assert body["_hal0"]["adjusted"] == []
    assert body["_hal0"]["meta"]["upscale"] == side // 256


@pytest.mark.parametrize("value", [1, None, False, 0, "none", "off"])
def test_a_picture_is_not_enlarged_without_need(client: FlaskClient, value: Any) -> None:
    picture, body = drawn(client, upscale=value)
    assert picture.size == (256, 256)
    assert "upscale" not in body["_hal0"]["meta"]


@pytest.mark.parametrize("format", ["png", "webp"])
def test_a_background_can_be_transparent(client: FlaskClient, format: str) -> None:
    picture, body = drawn(client, background="transparent", output_format=format)
    assert picture.convert("RGBA").getchannel("A").getextrema() == (0, 255)
    assert body["background"] == "transparent"


def test_other_backgrounds_are_those_that_the_model_draws(client: FlaskClient) -> None:
    for value in ("auto", "opaque", "Opaque"):
        picture, body = drawn(client, background=value)
        assert (picture.mode, body["background"]) == ("RGB", "opaque")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": "transparent", "output_format": "jpeg"}, "background"),
        ({"background": "blue"}, "background"),
        ({"upscale": 3}, "upscale"),
        ({"upscale": 1.5}, "upscale"),
        ({"upscale": "large"}, "upscale"),
    ],
)
def test_what_cannot_be_done_is_refused(client: FlaskClient, fields: dict[str, Any], param: str) -> None:
    error = client.post(PATH, json={**BASE, **fields}).get_json()["error"]
    assert (error["code"], error["param"]) == ("request.invalid_value", param)


def test_a_stream_reports_size_and_background_of_the_finished_picture(client: FlaskClient) -> None:
    response = client.post(PATH, json={**BASE, "stream": True, "upscale": 2, "background": "transparent"})
    assert '"background":"transparent"' in response.text.replace(" ", "")
    assert '"size":"512x512"' in response.text.replace(" ", "")


def cut_out(client: FlaskClient, **fields: Any) -> tuple[Image.Image, dict[str, Any]]:
    """What birefnet, whose graph makes transparent pictures by itself, answers."""
    photo = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(photo, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(photo.getvalue()).decode()}"
    body = {"model": "birefnet", "image": data, "response_format": "b64_json", **fields}
    response = client.post("/v1/images/edits", json=body)
    assert response.status_code == 200, response.text[:400]
    answer = response.get_json()
    return Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))), answer


@pytest.mark.parametrize("format", ["png", "webp"])
def test_an_answer_reports_the_background_that_its_picture_has(client: FlaskClient, format: str) -> None:
    picture, body = cut_out(client, output_format=format)
    assert picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)
    assert (body["background"], body["_hal0"]["adjusted"]) == ("transparent", [])


def test_a_transparent_picture_as_jpeg_is_on_white_and_says_so(client: FlaskClient) -> None:
    picture, body = cut_out(client, output_format="jpeg")
    assert (picture.format, picture.mode, body["background"]) == ("JPEG", "RGB", "opaque")
    (note,) = body["_hal0"]["adjusted"]
    assert (note["field"], note["asked"], note["done"]) == ("background", "transparent", "white")


def test_an_opaque_background_puts_a_transparent_picture_on_white(client: FlaskClient) -> None:
    cut, _ = cut_out(client)
    picture, body = cut_out(client, background="opaque")
    assert (picture.mode, body["background"], body["_hal0"]["adjusted"]) == ("RGB", "opaque", [])
    box = next((x, y) for x in range(cut.width) for y in range(cut.height) if cut.getpixel((x, y))[3] == 0)  # type: ignore[index]
    assert picture.getpixel(box) == (255, 255, 255)


@pytest.mark.parametrize("model", ["flux-kontext-dev", "qwen-image-edit-2509"])
def test_a_model_that_takes_its_size_from_the_picture_is_enlarged_by_the_factor(
    client: FlaskClient, model: str
) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (512, 256), "red").save(photo, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(photo.getvalue()).decode()}"
    body = {"model": model, "image": data, "prompt": "a hat", "response_format": "b64_json"}

    def edited(**fields: Any) -> tuple[tuple[int, int], dict[str, Any]]:
        response = client.post("/v1/images/edits", json={**body, **fields})
        assert response.status_code == 200, response.text[:400]
        answer = response.get_json()
        png = base64.b64decode(answer["data"][0]["b64_json"])
        return Image.open(io.BytesIO(png)).size, answer

    plain, _ = edited()
    enlarged, answer = edited(upscale=2)
    assert enlarged == (2 * plain[0], 2 * plain[1])
    assert answer["size"] == f"{enlarged[0]}x{enlarged[1]}"
