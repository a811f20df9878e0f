"""Edits, inpainting and variations over HTTP, in all the forms that clients send."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from PIL import Image, ImageChops, ImageDraw
from werkzeug.datastructures import MultiDict

from tests.api.sse import events_of
from tests.conftest import ROOT, MakeApp
from tests.pictures.pictures import bomb, encoded, pattern

EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"


def photo(
    width: int = 256, height: int = 256, image_format: str = "PNG", mode: str = "RGB", **options: Any
) -> bytes:
    return encoded(pattern(width, height).convert(mode), image_format, **options)


def mask(kind: str = "alpha", size: tuple[int, int] = (256, 256)) -> bytes:
    """A mask whose middle half is to be redrawn: transparent, or white."""
    box = (size[0] // 4, size[1] // 4, size[0] * 3 // 4 - 1, size[1] * 3 // 4 - 1)
    if kind == "alpha":
        image = Image.new("RGBA", size, (0, 0, 0, 255))
        ImageDraw.Draw(image).rectangle(box, fill=(0, 0, 0, 0))
    else:
        image = Image.new("L", size, 0)
        ImageDraw.Draw(image).rectangle(box, fill=255)
    return encoded(image)


Part = tuple[io.BytesIO, str, str] | tuple[io.BytesIO, str]


def file(data: bytes, name: str = "a.png", kind: str = "image/png") -> Part:
    return io.BytesIO(data), name, kind


def send(client: FlaskClient, path: str = EDITS, **fields: Any) -> dict[str, Any]:
    response = client.post(path, data={"prompt": "a hat", **fields}, content_type="multipart/form-data")
    assert response.status_code == 200, response.text[:500]
    body = response.get_json()
    schema = json.loads((ROOT / "schemas/image_response.schema.json").read_text())
    Draft202012Validator(schema).validate(body)
    return dict(body)


def refuse(
    client: FlaskClient, status: int, code: str, param: str | None, path: str = EDITS, **fields: Any
) -> str:
    response = client.post(path, data={"prompt": "a hat", **fields}, content_type="multipart/form-data")
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), response.text[:500]
    return str(error["message"])


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(datum["b64_json"]))).convert("RGB") for datum in body["data"]
    ]


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# --- the response ----------------------------------------------------------------------------------


def test_an_edit_returns_b64_in_the_size_of_the_image_and_describes_the_job(client: FlaskClient) -> None:
    body = send(client, image=file(photo(300, 260)))
    (picture,) = pictures(body)
    assert (picture.size, body["size"]) == ((300, 260), "300x260")
    assert body["_hal0"]["meta"].items() >= {"task": "edit", "strength": 0.5, "steps": 2}.items()
    assert body["_hal0"]["adjusted"] == body["_hal0"]["ignored"] == []


@pytest.mark.parametrize("fields", [{}, {"mask": True}, {"path": VARIATIONS}])
def test_openais_size_is_fitted_in_edits_inpainting_and_variations(
    client: FlaskClient, fields: dict[str, Any]
) -> None:
    parts = {"mask": file(mask())} if fields.get("mask") else {}
    path = fields.get("path", EDITS)
    body = send(
        client,
        path,
        image=file(photo()),
        model="gpt-image-1",
        size="1536x1024",
        response_format="b64_json",
        **parts,
    )
    (picture,) = pictures(body)
    assert (picture.size, body["size"]) == ((1024, 680), "1024x680")
    assert [note["field"] for note in body["_hal0"]["adjusted"]] == ["size", "image"]


def test_form_fields_contain_numbers_and_booleans_as_text(client: FlaskClient) -> None:
    body = send(
        client, image=file(photo()), model="sd-1.5", n="2", seed="7", steps="3", cfg_scale="4.5", strength="0.6",
        negative_prompt="", sampler="euler_a", schedule="default", size="", quality="auto", user="17",
        response_format="url", output_format="jpeg", output_compression="80", stream="False", seed_of="null",
    )  # fmt: skip
    assert len(body["data"]) == 2
    assert body["data"][0]["url"].endswith(".jpeg") or body["data"][0]["url"].endswith(".jpg")
    meta = body["_hal0"]["meta"]
    assert (
        meta.items()
        >= {"steps": 3, "cfg": 4.5, "seed": 7, "strength": 0.6, "sampler": "euler_ancestral"}.items()
    )
    assert [note["field"] for note in body["_hal0"]["ignored"]] == ["user"]


def test_a_gpustack_form_may_contain_null_as_text(client: FlaskClient) -> None:
    fields = {
        "seed": "null",
        "sampler": "euler",
        "schedule": "default",
        "cfg_scale": "1",
        "sample_steps": "2",
    }
    body = send(client, path="/v1-openai/image/edit", image=file(photo()), quality="standard", **fields)
    assert body["_hal0"]["meta"]["steps"] == 2
    assert 0 <= body["_hal0"]["meta"]["seed"] < 2**53


def test_the_same_seed_gives_the_same_picture_and_more_strength_changes_it_more(client: FlaskClient) -> None:
    def draw(**fields: Any) -> Image.Image:
        return pictures(send(client, image=file(photo()), model="sd-1.5", seed="3", steps="2", **fields))[0]

    assert draw().tobytes() == draw().tobytes()
    source = Image.open(io.BytesIO(photo()))
    weak, strong = (difference(draw(strength=text), source) for text in ("0.2", "0.9"))
    assert 0 < weak < strong
    fidelity = difference(draw(input_fidelity="high"), source)
    assert fidelity < difference(draw(input_fidelity="low"), source)


def difference(one: Image.Image, other: Image.Image) -> float:
    histogram = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).convert("L").histogram()
    return sum(level * count for level, count in enumerate(histogram)) / (one.width * one.height)


def test_a_form_may_give_a_lora_as_json_or_as_a_name(client: FlaskClient) -> None:
    for lora in ('[{"name": "lcm-sd-1.5", "strength": 0.5}]', '{"name": "lcm-sd-1.5"}', "lcm-sd-1.5"):
        body = send(client, image=file(photo()), model="sd-1.5", steps="1", lora=lora)
        assert body["_hal0"]["meta"]["loras"][0]["name"] == "lcm-sd-1.5"
    refuse(client, 400, "request.invalid_value", "lora", image=file(photo()), lora="nope")


@pytest.mark.parametrize(
    "fields",
    [
        {"lora[]": "lcm-sd-1.5"},
        {"lora[][name]": "lcm-sd-1.5", "lora[][strength]": "0.5"},
        {"lora[0][name]": "lcm-sd-1.5", "lora[0][strength]": "0.5"},
        {"extra_body[lora][0][name]": "lcm-sd-1.5"},
        {"extra_body": '{"lora": ["lcm-sd-1.5"]}'},
    ],
)
def test_objects_and_lists_are_accepted_as_sdks_flatten_them(
    client: FlaskClient, fields: dict[str, str]
) -> None:
    body = send(client, image=file(photo()), model="sd-1.5", steps="1", **fields)
    assert [lora["name"] for lora in body["_hal0"]["meta"]["loras"]] == ["lcm-sd-1.5"]
    assert body["_hal0"]["ignored"] == []


def test_fields_inside_extra_body_are_converted_to_their_types(client: FlaskClient) -> None:
    fields = {"extra_body[steps]": "1", "extra_body[negative_prompt]": "2024", "extra_body[cfg_scale]": "2"}
    meta = send(client, image=file(photo()), model="sd-1.5", **fields)["_hal0"]["meta"]
    assert meta.items() >= {"steps": 1, "negative_prompt": "2024", "cfg": 2.0}.items()


def test_images_are_accepted_inside_extra_body(client: FlaskClient) -> None:
    extra = {"mask": data_url(mask()), "images": [{"image_url": data_url(photo())}]}
    response = client.post(EDITS, json={"prompt": "x", "extra_body": extra})
    assert response.get_json()["_hal0"]["meta"]["task"] == "inpaint"


GPUSTACK_ADVANCED = {
    "n": "1", "response_format": "b64_json", "size": "512x512", "prompt": '"A lovely cat"', "sampler": "euler",
    "schedule": "default", "seed": "null", "cfg_scale": "4.5", "sample_steps": "20", "negative_prompt": "", "stream": "true",
    "stream_options_include_usage": "true", "quality": "standard",
}  # fmt: skip


@pytest.mark.parametrize("model", [None, "flux-schnell", "sd-1.5"])
def test_gpustacks_own_example_request_works_unchanged(client: FlaskClient, model: str | None) -> None:
    more = {} if model is None else {"model": model}
    response = client.post(
        "/v1-openai/image/edit",
        data={**GPUSTACK_ADVANCED, **more, "image": file(photo()), "mask": file(mask())},
    )
    assert (response.status_code, response.mimetype) == (200, "text/event-stream"), response.text[:300]
    *_, last, done = events_of(response.text)
    assert (last.data["data"][0]["progress"], done.data) == (100.0, "[DONE]")
    body = {"n": 1, "size": "512x512", "prompt": "A lovely cat", "sampler": "euler", "schedule": "default", "seed": None,
            "cfg_scale": 4.5, "sample_steps": 20, "negative_prompt": "", **more}  # fmt: skip
    assert client.post("/v1-openai/image/generate", json=body).status_code == 200


# --- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alpha", "luminance"])
@pytest.mark.parametrize("size", [(256, 256), (301, 277)])
@pytest.mark.parametrize("model", ["sdxl-turbo", "sd-1.5", "flux-schnell"])
def test_pixels_outside_the_mask_are_unchanged_and_the_inside_is_redrawn(
    client: FlaskClient, kind: str, size: tuple[int, int], model: str
) -> None:
    original = photo(*size)
    body = send(client, image=file(original), mask=file(mask(kind, size)), model=model, steps="2")
    (picture,) = pictures(body)
    assert body["_hal0"]["meta"].items() >= {"task": "inpaint", "strength": 1.0}.items()
    changed = (
        ImageChops.difference(picture, Image.open(io.BytesIO(original)))
        .convert("L")
        .point(lambda v: 255 * (v > 0))
    )
    left, top, right, bottom = changed.getbbox() or (0, 0, 0, 0)
    assert left >= size[0] // 4
    assert top >= size[1] // 4
    assert right <= size[0] * 3 // 4
    assert bottom <= size[1] * 3 // 4
    assert (right - left) * (bottom - top) > 0.8 * size[0] * size[1] / 4


def test_every_picture_of_a_batch_respects_the_mask(client: FlaskClient) -> None:
    original = photo()
    drawn = pictures(send(client, image=file(original), mask=file(mask()), n="3", model="sd-1.5", steps="1"))
    source = Image.open(io.BytesIO(original))
    assert [picture.crop((0, 0, 256, 60)).tobytes() for picture in drawn] == [
        source.crop((0, 0, 256, 60)).tobytes()
    ] * 3
    assert len({picture.tobytes() for picture in drawn}) == 3


def test_a_mask_of_another_size_is_scaled_to_the_image(client: FlaskClient) -> None:
    original = photo()
    (picture,) = pictures(send(client, image=file(original), mask=file(mask(size=(64, 64)))))
    assert (
        picture.crop((0, 0, 256, 56)).tobytes()
        == Image.open(io.BytesIO(original)).crop((0, 0, 256, 56)).tobytes()
    )


def test_scaling_the_mask_is_listed_as_adjusted(client: FlaskClient) -> None:
    body = send(client, image=file(photo()), mask=file(mask(size=(64, 64))))
    assert (
        body["_hal0"]["adjusted"][0].items() >= {"field": "mask", "asked": "64x64", "done": "256x256"}.items()
    )


def test_a_mask_for_the_unrotated_pixels_is_rotated_with_the_photo(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    unrotated = pattern(320, 256)
    left = Image.new("L", (320, 256), 0)
    ImageDraw.Draw(left).rectangle((0, 0, 99, 255), fill=255)
    data = encoded(unrotated, "PNG", exif=exif)
    (picture,) = pictures(send(client, image=file(data), mask=file(encoded(left))))
    upright = unrotated.transpose(Image.Transpose.ROTATE_270)
    changed = ImageChops.difference(picture, upright).convert("L").point(lambda v: 255 * (v > 0)).getbbox()
    assert picture.size == (256, 320)
    assert changed is not None
    assert changed[3] <= 100  # the left side is now on top


def test_only_dall_e_2_uses_the_transparency_of_the_image_as_mask(client: FlaskClient) -> None:
    image = Image.open(io.BytesIO(photo())).convert("RGBA")
    ImageDraw.Draw(image).rectangle((64, 64, 191, 191), fill=(0, 0, 0, 0))
    tasks = [
        send(client, image=file(encoded(image)), model=model)["_hal0"]["meta"]["task"]
        for model in ("dall-e-2", "gpt-image-1", "sdxl-turbo")
    ]
    assert tasks == ["inpaint", "edit", "edit"]


# --- forms of images -------------------------------------------------------------------------------


SPELLINGS: dict[str, Callable[[], Any]] = {
    "one file": lambda: {"image": file(photo())},
    "a list with one file": lambda: {"image[]": file(photo())},
    "octet-stream": lambda: {"image": file(photo(), "upload", "application/octet-stream")},
    "a wrong type": lambda: {"image": file(photo(image_format="JPEG"), "x.png", "image/gif")},
    "a path for a name": lambda: {"image": file(photo(), "../../etc/passwd")},
    "numbered": lambda: {"image[0]": file(photo())},
    "images": lambda: {"images": file(photo())},
    "images[]": lambda: {"images[]": file(photo())},
    "a data URL": lambda: {"image": data_url(photo())},
    "base64": lambda: {"image": base64.b64encode(photo()).decode()},
    "a large text": lambda: {"image": data_url(photo(800, 800))},
    "a JSON text": lambda: {"image": json.dumps({"image_url": data_url(photo())})},
}


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_all_forms_of_sending_an_image_are_accepted(client: FlaskClient, spelling: str) -> None:
    assert send(client, **SPELLINGS[spelling]())["_hal0"]["meta"]["task"] == "edit"


def test_a_model_that_takes_one_image_refuses_several(client: FlaskClient) -> None:
    for names in (
        ("image", "image"),
        ("image[]", "image[]"),
        ("image[1]", "image[0]"),
        ("image", "ref_images"),
    ):
        parts = zip(names, (file(photo()), file(photo(320, 256))), strict=True)
        fields = MultiDict([("prompt", "x"), *parts])
        response = client.post(EDITS, data=fields)
        error = response.get_json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (
            400,
            "image.image_count_not_allowed",
            "image",
        ), names


JSON_BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "images": lambda url: {"images": [{"image_url": url}]},
    "nested": lambda url: {"images": [{"image_url": {"url": url}}]},
    "texts": lambda url: {"images": [url]},
    "image": lambda url: {"image": url},
    "image list": lambda url: {"image": [url]},
    "image object": lambda url: {"image": {"image_url": url}},
}


@pytest.mark.parametrize("name", list(JSON_BODIES))
def test_an_edit_may_be_json(client: FlaskClient, name: str) -> None:
    body = {
        "prompt": "x",
        **JSON_BODIES[name](data_url(photo(512, 512))),
        "mask": {"image_url": data_url(mask())},
    }
    response = client.post(EDITS, json=body)
    assert response.status_code == 200, response.text[:300]
    assert response.get_json()["_hal0"]["meta"]["task"] == "inpaint"


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("PNG", "P", {}), ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("PNG", "RGBA", {}),
        ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("WEBP", "RGB", {}), ("GIF", "P", {}), ("BMP", "RGB", {}),
    ],
)  # fmt: skip
def test_all_picture_formats_and_modes_are_accepted(
    client: FlaskClient, image_format: str, mode: str, options: dict[str, Any]
) -> None:
    image = Image.new("I;16", (256, 256), 30_000) if mode == "I;16" else None
    data = encoded(image, image_format) if image else photo(image_format=image_format, mode=mode, **options)
    assert send(client, image=file(data))["size"] == "256x256"


def test_a_photo_is_rotated_as_its_exif_orientation_says(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert send(client, image=file(photo(256, 320, "JPEG", exif=exif)))["size"] == "320x256"


def test_the_first_frame_of_an_animation_is_used(client: FlaskClient) -> None:
    frames = [Image.new("P", (256, 256), colour) for colour in (1, 2)]
    assert send(client, image=file(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))[
        "data"
    ]


def test_a_huge_image_is_scaled_to_the_models_limits_and_listed_as_adjusted(client: FlaskClient) -> None:
    body = send(client, image=file(encoded(Image.new("RGB", (6000, 4000), "teal"), "JPEG")))
    assert body["size"] == "1024x680"
    assert (
        body["_hal0"]["adjusted"][0].items()
        >= {"field": "image", "asked": "6000x4000", "done": "1024x680"}.items()
    )


# --- variations ------------------------------------------------------------------------------------


def test_variations_need_no_prompt_and_return_urls(client: FlaskClient) -> None:
    response = client.post(
        VARIATIONS, data={"image": file(photo()), "n": "2", "size": "256x256", "user": "x"}
    )
    body = response.get_json()
    assert [list(datum) for datum in body["data"]] == [["url"], ["url"]]
    assert client.get(body["data"][0]["url"]).mimetype == "image/png"
    assert body["_hal0"]["meta"]["task"] == "vary"


def test_fields_that_a_variation_does_not_use_are_listed_as_ignored(client: FlaskClient) -> None:
    body = send(client, VARIATIONS, image=file(photo()), stream="true")
    assert {note["field"] for note in body["_hal0"]["ignored"]} == {"prompt", "stream"}


def test_a_mask_in_a_variation_is_refused_and_names_the_path_of_edits(client: FlaskClient) -> None:
    fields = {"image": file(photo()), "mask": file(mask())}
    message = refuse(client, 400, "request.field_not_supported", "mask", VARIATIONS, **fields)
    assert EDITS in message
    transparent = encoded(Image.new("RGBA", (256, 256), (200, 0, 0, 0)))
    body = send(client, VARIATIONS, image=file(transparent), model="dall-e-2")
    assert body["_hal0"]["meta"]["task"] == "vary"


# --- streams ---------------------------------------------------------------------------------------


def test_a_streamed_edit_sends_image_edit_events(client: FlaskClient) -> None:
    fields = {
        "prompt": "x",
        "image": file(photo()),
        "stream": "true",
        "partial_images": "1",
        "model": "sd-1.5",
        "steps": "4",
    }
    events = events_of(client.post(EDITS, data=fields).text)
    assert [event.name for event in events] == [None, "image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1-openai/image/edit", {}),
        (EDITS, {"stream_options_include_usage": "true"}),
        (EDITS, {"stream_options[include_usage]": "true"}),
        (EDITS, {"stream_options": '{"include_usage": true}'}),
    ],
)
@pytest.mark.parametrize("is_invalid", [False, True])
def test_gpustacks_edit_stream_reports_an_invalid_image_inside_the_stream(
    client: FlaskClient, path: str, more: dict[str, str], is_invalid: bool
) -> None:
    image = b"no picture" if is_invalid else photo()
    response = client.post(path, data={"prompt": "x", "image": file(image), "stream": "true", **more})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    *events, last, done = events_of(response.text)
    assert done.data == "[DONE]"
    if is_invalid:
        assert events[0].data["error"]["code"] == "image.invalid_image"
        assert last.raw.startswith('error: {"code":400,"message":"Invalid image')
    else:
        assert last.data["data"][0]["progress"] == 100.0
        assert "usage" in last.data


def test_an_invalid_image_is_a_plain_400_for_openais_clients(client: FlaskClient) -> None:
    refuse(client, 400, "image.invalid_image", "image", image=file(b"text"), stream="true")


# --- refused requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", photo()[:500], bomb(60_000, 60_000), bomb(2**31 - 1, 1), b"%PDF-1.4"],
    ids=["empty", "text", "svg", "half", "bomb", "line", "pdf"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["image", "mask"])
def test_an_invalid_picture_is_400(client: FlaskClient, field: str, data: bytes) -> None:
    fields = {"image": file(photo()), field: file(data)}
    assert refuse(client, 400, "image.invalid_image", field, **fields)


def test_a_mask_that_selects_nothing_is_refused(client: FlaskClient) -> None:
    black = encoded(Image.new("L", (256, 256), 0))
    refuse(client, 400, "image.invalid_image", "mask", image=file(photo()), mask=file(black))


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
@pytest.mark.parametrize("fields", [{}, {"image": ""}, {"drawing": "x"}])
def test_a_missing_image_is_400(client: FlaskClient, path: str, fields: dict[str, str]) -> None:
    refuse(client, 400, "image.image_required", "image", path, **fields)


def test_seventeen_images_are_too_many(client: FlaskClient) -> None:
    fields = MultiDict([("prompt", "x"), *(("image[]", file(photo(8, 8))) for _ in range(17))])
    response = client.post(EDITS, data=fields)
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, "image")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", "0"), ("n", "x"), ("n", "11"), ("size", "banana"), ("partial_images", "7"), ("stream", "perhaps"),
        ("output_format", "gif"), ("strength", "2"), ("strength", "much"), ("steps", "-1"), ("seed", "1.5"),
        ("response_format", "file"), ("sampler", "nope"), ("output_compression", "101"), ("lora", "[{]"), ("extra_body", "x"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_400_and_param_names_the_field(
    client: FlaskClient, field: str, value: str
) -> None:
    response = client.post(EDITS, data={"prompt": "x", "image": file(photo()), field: value})
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, field), response.text[:300]


def test_an_unknown_sampler_is_refused_with_the_known_ones(client: FlaskClient) -> None:
    message = refuse(
        client, 400, "request.invalid_value", "sampler", image=file(photo()), sampler="unipc3000"
    )
    assert "euler_ancestral" in message


def test_a_repeated_field_must_have_the_same_value(client: FlaskClient) -> None:
    same = MultiDict([("prompt", "x"), ("image", file(photo())), ("n", "1"), ("n", "1")])
    assert client.post(EDITS, data=same).status_code == 200
    other = MultiDict([("prompt", "x"), ("image", file(photo())), ("n", "1"), ("n", "2")])
    assert client.post(EDITS, data=other).get_json()["error"]["param"] == "n"


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "https://example.org/a.png", "HTTP://[::1]/"])
def test_image_urls_are_refused_by_default(client: FlaskClient, url: str) -> None:
    response = client.post(EDITS, json={"prompt": "x", "images": [{"image_url": url}]})
    assert (response.status_code, response.get_json()["error"]["code"]) == (400, "image.url_refused")


def test_image_urls_in_private_networks_are_always_refused(make_app: MakeApp) -> None:
    client = make_app(images__fetch_urls=True).test_client()
    response = client.post(EDITS, json={"prompt": "x", "images": [{"image_url": "http://127.0.0.1:9/a.png"}]})
    assert (response.status_code, response.get_json()["error"]["code"]) == (400, "image.url_refused")


@pytest.mark.parametrize(
    "reference",
    [{"file_id": "file-1"}, {}, {"image_url": 5}, 7, ["x", ["y"]], {"image_url": {"url": None}}, True],
)
def test_an_invalid_image_reference_is_400(client: FlaskClient, reference: Any) -> None:
    response = client.post(EDITS, json={"prompt": "x", "images": [reference]})
    assert response.status_code == 400
    assert response.get_json()["error"]["param"] == "image"


@pytest.mark.parametrize("depth", [60, 900, 960, 985])
@pytest.mark.parametrize("field", ["image", "steps", "lora", "wings", "extra_body"])
def test_too_deeply_nested_values_are_400_in_every_field(client: FlaskClient, field: str, depth: int) -> None:
    deep = '{"image_url":' * depth + "1" + "}" * depth
    body = f'{{"prompt": "x", "size": "256x256", "{field}": {deep}}}'
    for path in (EDITS, "/v1/images/generations"):
        response = client.post(path, data=body, content_type="application/json")
        assert response.status_code == 400, response.text[:300]
    response = client.post(EDITS, data={"prompt": "x", field: deep}, content_type="multipart/form-data")
    assert response.status_code == 400, response.text[:300]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "image/png"])
def test_another_content_type_is_415(client: FlaskClient, kind: str) -> None:
    response = client.post(EDITS, data=photo(), content_type=kind)
    assert (response.status_code, response.get_json()["error"]["code"]) == (415, "request.wrong_content_type")


def complete_form() -> bytes:
    return b"\r\n".join(
        [
            b"--b", b'Content-Disposition: form-data; name="prompt"', b"", b"x",
            b"--b", b'Content-Disposition: form-data; name="image"; filename="a.png"', b"Content-Type: image/png", b"", photo(),
            b"--b--", b"",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("length", [0, 1, 30, 80, 200, 3000, -10, -6])
def test_an_incomplete_form_is_a_clear_400(client: FlaskClient, length: int) -> None:
    response = client.post(
        EDITS, data=complete_form()[:length], content_type="multipart/form-data; boundary=b"
    )
    assert response.status_code in (400, 422), response.text
    assert response.get_json()["error"]["code"] in (
        "request.malformed",
        "image.image_required",
        "image.prompt_required",
    )


def test_the_complete_form_is_accepted(client: FlaskClient) -> None:
    assert (
        client.post(EDITS, data=complete_form(), content_type="multipart/form-data; boundary=b").status_code
        == 200
    )


def test_a_text_field_over_the_limit_is_413(client: FlaskClient) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + b"A" * 30_000_001 + b"\r\n--b--\r\n"
    )
    response = client.post(EDITS, data=body, content_type="multipart/form-data; boundary=b")
    assert (response.status_code, response.get_json()["error"]["code"]) == (413, "request.too_large")


def test_more_than_a_thousand_form_parts_are_413(client: FlaskClient) -> None:
    fields = MultiDict([("prompt", "x"), *((f"x{index}", "1") for index in range(1100))])
    assert client.post(EDITS, data=fields, content_type="multipart/form-data").status_code == 413


# --- uploads to the engine -------------------------------------------------------------------------


@pytest.fixture
def uploads(make_app: MakeApp) -> Iterator[tuple[FlaskClient, list[tuple[str, int]]]]:
    """A test client, and a list of the name and size of each upload of its application."""
    client = make_app().test_client()
    engine = client.application.extensions["easel"].engine_selector.current()
    recorded: list[tuple[str, int]] = []
    upload = engine._http.upload

    def record(data: bytes, name: str, subfolder: str, **more: Any) -> None:
        recorded.append((name, len(data)))
        upload(data, name, subfolder, **more)

    engine._http.upload = record
    yield client, recorded
    del engine._http.upload


@pytest.mark.parametrize("fails", [False, True])
def test_uploaded_images_are_overwritten_in_the_engine_afterwards(uploads: Any, fails: bool) -> None:
    client, recorded = uploads
    # More pixels than the sketch engine has memory for: the job fails after the upload.
    fields = {"n": "9", "size": "1024x1024", "model": "flux-schnell"} if fails else {}
    response = client.post(
        EDITS, data={"prompt": "x", "image": file(photo()), "mask": file(mask()), **fields}
    )
    assert response.status_code == 200
    sizes: dict[str, list[int]] = {}
    for name, size in recorded:
        sizes.setdefault(name, []).append(size)
    assert len(sizes) == 2
    assert all(first > 100 > last for first, *_, last in sizes.values())
