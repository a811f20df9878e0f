"""Outpainting over HTTP: by a field, and by the transparent frame that OpenAI's clients send."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image, ImageChops

from tests.api.test_edits import EDITS, VARIATIONS, data_url, file, mask, photo, pictures, refuse, send
from tests.pictures.pictures import encoded, pattern

FRAME_MODELS = ("sd-1.5", "sd-1.5-inpainting", "sdxl-base-1.0", "flux-fill-dev", "qwen-image-edit-2509")


def part(picture: Image.Image, left: int, top: int, width: int = 256, height: int = 256) -> Image.Image:
    return picture.crop((left, top, left + width, top + height))


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pixels."""
    return max(band[1] for band in ImageChops.difference(one, other).convert("RGB").getextrema())


def framed(width: int, height: int, left: int, top: int, mode: str = "RGBA") -> bytes:
    """The pattern of `photo` in a transparent canvas."""
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(pattern(256, 256).convert("RGB"), (left, top))
    return encoded(canvas.convert(mode))


@pytest.mark.parametrize("model", FRAME_MODELS)
def test_the_image_is_extended_and_keeps_each_of_its_pixels(client: FlaskClient, model: str) -> None:
    body = send(client, image=file(photo()), model=model, outpaint='{"left": 128, "bottom": 64}')
    (picture,) = pictures(body)
    assert (picture.size, body["size"]) == ((384, 320), "384x320")
    assert difference(part(picture, 128, 0), pattern(256, 256).convert("RGB")) == 0
    meta = body["_hal0"]["meta"]
    assert meta["outpaint"] == {"left": 128, "top": 0, "right": 0, "bottom": 64}
    assert (meta["task"], body["_hal0"]["ignored"]) == ("inpaint", [])
    assert not [note for note in body["_hal0"]["adjusted"] if note["field"] in ("size", "image")]


@pytest.mark.parametrize(
    "fields",
    [
        {"outpaint": "64"},
        {"outpaint[left]": "64", "outpaint[right]": "64", "outpaint[up]": "64", "outpaint[down]": "64"},
        {"expand_left": "64", "expand_right": "64", "expand_up": "64", "expandDown": "64"},
        {"outpaint": "64", "expand_left": "64", "size": "384x384"},
    ],
)
def test_a_form_may_say_the_sides_in_several_ways(client: FlaskClient, fields: dict[str, str]) -> None:
    body = send(client, image=file(photo()), model="sd-1.5", steps="2", **fields)
    (picture,) = pictures(body)
    assert picture.size == (384, 384)
    assert difference(part(picture, 64, 64), pattern(256, 256).convert("RGB")) == 0


@pytest.mark.parametrize("path", [EDITS, "/v1/images/generations"])
def test_json_may_have_a_number_or_an_object(client: FlaskClient, path: str) -> None:
    for sides in (64, {"left": 64, "top": 64, "right": 64, "bottom": 64.0}):
        fields = {
            "prompt": "a hat",
            "image": data_url(photo()),
            "outpaint": sides,
            "model": "sd-1.5",
            "steps": 2,
        }
        response = client.post(path, json={**fields, "response_format": "b64_json"})
        assert response.status_code == 200, response.text[:300]
        assert response.get_json()["size"] == "384x384"


def test_json_may_have_flat_sides_as_text(client: FlaskClient) -> None:
    fields = {"prompt": "a hat", "image": data_url(photo()), "model": "sd-1.5", "steps": 2}
    response = client.post(EDITS, json={**fields, "expand_left": "64", "expandDown": "32.0"})
    assert response.status_code == 200, response.text[:300]
    assert response.get_json()["size"] == "320x288"
    error = client.post(EDITS, json={**fields, "expand_left": "much"}).get_json()["error"]
    assert (error["code"], error["param"]) == ("request.invalid_value", "expand_left")
    assert error["message"].endswith("it must be a whole number of pixels.")


def test_a_size_off_the_models_multiple_keeps_the_image_exact_too(client: FlaskClient) -> None:
    body = send(client, image=file(photo(301, 263)), model="sd-1.5", steps="2", outpaint="33")
    (picture,) = pictures(body)
    assert picture.size == (367, 329)
    assert difference(part(picture, 33, 33, 301, 263), pattern(301, 263).convert("RGB")) == 0


def test_a_mask_beside_it_is_drawn_as_well(client: FlaskClient) -> None:
    fields = {"model": "sd-1.5", "steps": "2", "seed": "5", "outpaint": '{"right": 128}'}
    (picture,) = pictures(send(client, image=file(photo()), mask=file(mask()), **fields))
    original = pattern(256, 256).convert("RGB")
    assert picture.size == (384, 256)
    assert difference(part(picture, 0, 0, 64), part(original, 0, 0, 64)) == 0
    assert difference(part(picture, 96, 96, 64, 64), part(original, 96, 96, 64, 64)) > 0


@pytest.mark.parametrize("by_field", [False, True])
def test_the_frame_is_drawn_and_fades_into_the_edges_of_the_image(
    client: FlaskClient, by_field: bool
) -> None:
    blue = Image.new("RGBA", (256, 256), (0, 0, 120))
    canvas = Image.new("RGBA", (512, 512))
    canvas.paste(blue, (128, 128))
    fields = {"outpaint": "128"} if by_field else {}
    (picture,) = pictures(
        send(client, image=file(encoded(blue if by_field else canvas)), model="sd-1.5", steps="2", **fields)
    )
    # The rim of a picture of 512 pixels is 4 wide: next to the image the frame has its colour, and no white of the canvas.
    for beside in ((136, 127, 376, 128), (127, 136, 128, 376), (384, 136, 385, 376), (136, 384, 376, 385)):
        strip = picture.crop(beside)
        assert difference(strip, Image.new("RGB", strip.size, (0, 0, 120))) < 100
    assert difference(picture.crop((0, 0, 512, 120)), Image.new("RGB", (512, 120), (127, 127, 127))) > 60


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"outpaint": "2000"}, "image.size_not_allowed", "outpaint"),
        ({"outpaint": "99999"}, "image.size_not_allowed", "outpaint"),
        ({"outpaint": "64", "size": "512x512"}, "image.size_not_allowed", "size"),
        ({"outpaint": "64", "aspect_ratio": "16:9"}, "image.size_not_allowed", "aspect_ratio"),
        ({"outpaint": "-3"}, "request.invalid_value", "outpaint"),
        ({"outpaint": "1.5"}, "request.invalid_value", "outpaint"),
        ({"outpaint": "much"}, "request.invalid_value", "outpaint"),
        ({"outpaint": '{"inside": 3}'}, "request.invalid_value", "outpaint"),
        ({"outpaint": '{"top": 3, "up": 4}'}, "request.invalid_value", "outpaint"),
        ({"outpaint": '{"left": true}'}, "request.invalid_value", "outpaint"),
        ({"outpaint": "64", "expand_left": "65"}, "request.invalid_value", "outpaint"),
        ({"expand_left": "[1]"}, "request.invalid_value", "expand_left"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    client: FlaskClient, fields: dict[str, str], code: str, param: str
) -> None:
    message = refuse(client, 400, code, param, image=file(photo()), model="sd-1.5", **fields)
    if fields["outpaint" if "outpaint" in fields else "expand_left"] == "2000":
        assert "4256x4256" in message
        assert "1024x1024" in message


def test_sides_of_zero_extend_nothing(client: FlaskClient) -> None:
    for value in ("0", "", "false", '{"left": 0, "right": 0}'):
        body = send(client, image=file(photo()), model="sd-1.5", steps="2", outpaint=value)
        assert (body["size"], "outpaint" in body["_hal0"]["meta"]) == ("256x256", False)


def test_it_needs_an_image_a_prompt_and_a_model_that_draws_masks(client: FlaskClient) -> None:
    response = client.post("/v1/images/generations", json={"prompt": "a hat", "outpaint": 64})
    error = response.get_json()["error"]
    assert (error["code"], error["param"]) == ("image.image_required", "image")
    fields: dict[str, Any] = {"image": file(photo()), "outpaint": "64"}
    refuse(client, 400, "request.field_not_supported", "outpaint", VARIATIONS, **fields)
    fields = {"image": file(photo()), "outpaint": "64", "model": "realesrgan-x4plus"}
    refuse(client, 400, "request.invalid_value", "model", **fields)
    transparent = encoded(Image.new("RGBA", (256, 256)))
    fields = {"image": file(photo()), "outpaint": "64", "markup": file(transparent)}
    refuse(client, 400, "request.invalid_value", "markup", **fields)


# --- OpenAI's way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_transparent_frame_is_drawn_and_the_image_in_it_is_kept(
    client: FlaskClient, with_mask: bool, mode: str
) -> None:
    canvas = framed(384, 320, 100, 40)
    image = framed(384, 320, 100, 40, mode)
    original = Image.open(io.BytesIO(image)).convert("RGB")
    parts = {"mask": file(canvas)} if with_mask else {}
    body = send(client, image=file(image), model="sd-1.5", steps="2", size="384x320", **parts)
    (picture,) = pictures(body)
    assert body["size"] == "384x320"
    assert difference(part(picture, 100, 40), part(original, 100, 40)) == 0
    assert body["_hal0"]["meta"]["outpaint"] == {"left": 100, "top": 40, "right": 28, "bottom": 24}
    notes = [note for note in body["_hal0"]["adjusted"] if note["field"] == "image"]
    assert len(notes) == (0 if with_mask else 1)


def test_other_transparent_images_are_redrawn_on_white_as_before(client: FlaskClient) -> None:
    round_logo = Image.new("RGBA", (256, 256))
    round_logo.paste(pattern(100, 100).convert("RGB"), (50, 50))
    round_logo.putpixel((60, 60), (0, 0, 0, 0))
    body = send(client, image=file(encoded(round_logo)), model="sd-1.5", steps="4")
    assert (body["_hal0"]["meta"]["task"], body["_hal0"]["adjusted"]) == ("edit", [])


def test_a_thin_transparent_border_is_no_frame_to_draw(client: FlaskClient) -> None:
    body = send(client, image=file(framed(264, 264, 4, 4)), model="sd-1.5", steps="2")
    assert (body["_hal0"]["meta"]["task"], "outpaint" in body["_hal0"]["meta"]) == ("edit", False)


def test_a_mask_that_leaves_some_of_the_frame_out_keeps_that_white(client: FlaskClient) -> None:
    hole = Image.new("RGBA", (384, 320), "black")
    hole.paste((0, 0, 0, 0), (0, 0, 384, 40))
    parts = {"image": file(framed(384, 320, 100, 40)), "mask": file(encoded(hole))}
    body = send(client, model="sd-1.5", steps="2", **parts)
    (picture,) = pictures(body)
    assert "outpaint" not in body["_hal0"]["meta"]
    assert difference(picture.crop((0, 60, 100, 320)), Image.new("RGB", (100, 260), "white")) == 0


def test_an_sdk_sends_it_in_extra_body(client: FlaskClient) -> None:
    fields = {
        "prompt": "a hat",
        "model": "sd-1.5",
        "extra_body": {"outpaint": {"left": 64}, "steps": 2},
        "images": [{"image_url": "data:image/png;base64," + base64.b64encode(photo()).decode()}],
    }
    response = client.post(EDITS, json=fields)
    assert response.status_code == 200, response.text[:300]
    assert response.get_json()["size"] == "320x256"
