"""Edits, inpainting and variations as clients send them: what arrives, what comes back, what is refused."""

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


def photo(width: int = 256, height: int = 256, form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    return encoded(pattern(width, height).convert(mode), form, **options)


def mask(kind: str = "alpha", size: tuple[int, int] = (256, 256)) -> bytes:
    """Leaves the middle half open: transparent, or white."""
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
    answer = client.post(path, data={"prompt": "a hat", **fields}, content_type="multipart/form-data")
    assert answer.status_code == 200, answer.text[:500]
    body = answer.get_json()
    schema = json.loads((ROOT / "schemas/image_response.schema.json").read_text())
    Draft202012Validator(schema).validate(body)
    return dict(body)


def refuse(
    client: FlaskClient, status: int, code: str, param: str | None, path: str = EDITS, **fields: Any
) -> str:
    answer = client.post(path, data={"prompt": "a hat", **fields}, content_type="multipart/form-data")
    error = answer.get_json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text[:500]
    return str(error["message"])


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(datum["b64_json"]))).convert("RGB") for datum in body["data"]
    ]


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# --- the answer ------------------------------------------------------------------------------------


def test_an_edit_is_b64_of_the_images_own_size_and_tells_how_it_was_made(client: FlaskClient) -> None:
    body = send(client, image=file(photo(300, 260)))
    (made,) = pictures(body)
    assert (made.size, body["size"]) == ((300, 260), "300x260")
    assert body["_hal0"]["meta"].items() >= {"task": "edit", "strength": 0.5, "steps": 2}.items()
    assert body["_hal0"]["adjusted"] == body["_hal0"]["ignored"] == []


def test_fields_of_a_form_are_numbers_and_booleans_as_texts(client: FlaskClient) -> None:
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


def test_a_form_may_be_gpustacks_with_texts_for_nothing(client: FlaskClient) -> None:
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


def test_the_same_seed_gives_the_same_bytes_and_more_strength_another_picture(client: FlaskClient) -> None:
    def made(**fields: Any) -> Image.Image:
        return pictures(send(client, image=file(photo()), model="sd-1.5", seed="3", steps="2", **fields))[0]

    assert made().tobytes() == made().tobytes()
    source = Image.open(io.BytesIO(photo()))
    weak, strong = (difference(made(strength=text), source) for text in ("0.2", "0.9"))
    assert 0 < weak < strong
    fidelity = difference(made(input_fidelity="high"), source)
    assert fidelity < difference(made(input_fidelity="low"), source)


def difference(one: Image.Image, other: Image.Image) -> float:
    histogram = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).convert("L").histogram()
    return sum(level * count for level, count in enumerate(histogram)) / (one.width * one.height)


def test_a_lora_may_be_named_in_every_way_in_which_forms_can(client: FlaskClient) -> None:
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
def test_objects_and_lists_arrive_as_sdks_flatten_them(client: FlaskClient, fields: dict[str, str]) -> None:
    body = send(client, image=file(photo()), model="sd-1.5", steps="1", **fields)
    assert [lora["name"] for lora in body["_hal0"]["meta"]["loras"]] == ["lcm-sd-1.5"]
    assert body["_hal0"]["ignored"] == []


def test_each_part_of_an_extra_body_has_its_fields_type(client: FlaskClient) -> None:
    fields = {"extra_body[steps]": "1", "extra_body[negative_prompt]": "2024", "extra_body[cfg_scale]": "2"}
    meta = send(client, image=file(photo()), model="sd-1.5", **fields)["_hal0"]["meta"]
    assert meta.items() >= {"steps": 1, "negative_prompt": "2024", "cfg": 2.0}.items()


def test_images_count_in_an_extra_body_too(client: FlaskClient) -> None:
    extra = {"mask": data_url(mask()), "images": [{"image_url": data_url(photo())}]}
    answer = client.post(EDITS, json={"prompt": "x", "extra_body": extra})
    assert answer.get_json()["_hal0"]["meta"]["task"] == "inpaint"


GPUSTACK_ADVANCED = {
    "n": "1", "response_format": "b64_json", "size": "512x512", "prompt": '"A lovely cat"', "sampler": "euler",
    "schedule": "default", "seed": "null", "cfg_scale": "4.5", "sample_steps": "20", "negative_prompt": "", "stream": "true",
    "stream_options_include_usage": "true", "quality": "standard",
}  # fmt: skip


@pytest.mark.parametrize("model", [None, "flux-schnell", "sd-1.5"])
def test_gpustacks_own_example_is_drawn_as_it_stands(client: FlaskClient, model: str | None) -> None:
    more = {} if model is None else {"model": model}
    answer = client.post(
        "/v1-openai/image/edit",
        data={**GPUSTACK_ADVANCED, **more, "image": file(photo()), "mask": file(mask())},
    )
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text[:300]
    *_, last, done = events_of(answer.text)
    assert (last.data["data"][0]["progress"], done.data) == (100.0, "[DONE]")
    body = {"n": 1, "size": "512x512", "prompt": "A lovely cat", "sampler": "euler", "schedule": "default", "seed": None,
            "cfg_scale": 4.5, "sample_steps": 20, "negative_prompt": "", **more}  # fmt: skip
    assert client.post("/v1-openai/image/generate", json=body).status_code == 200


# --- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alpha", "luminance"])
@pytest.mark.parametrize("size", [(256, 256), (301, 277)])
@pytest.mark.parametrize("model", ["sdxl-turbo", "sd-1.5", "flux-schnell"])
def test_outside_of_the_mask_every_pixel_stays_and_inside_it_is_drawn(
    client: FlaskClient, kind: str, size: tuple[int, int], model: str
) -> None:
    original = photo(*size)
    body = send(client, image=file(original), mask=file(mask(kind, size)), model=model, steps="2")
    (made,) = pictures(body)
    assert body["_hal0"]["meta"].items() >= {"task": "inpaint", "strength": 1.0}.items()
    changed = (
        ImageChops.difference(made, Image.open(io.BytesIO(original)))
        .convert("L")
        .point(lambda v: 255 * (v > 0))
    )
    left, top, right, bottom = changed.getbbox() or (0, 0, 0, 0)
    assert left >= size[0] // 4
    assert top >= size[1] // 4
    assert right <= size[0] * 3 // 4
    assert bottom <= size[1] * 3 // 4
    assert (right - left) * (bottom - top) > 0.8 * size[0] * size[1] / 4


def test_every_picture_of_a_batch_keeps_what_the_mask_keeps(client: FlaskClient) -> None:
    original = photo()
    made = pictures(send(client, image=file(original), mask=file(mask()), n="3", model="sd-1.5", steps="1"))
    source = Image.open(io.BytesIO(original))
    assert [picture.crop((0, 0, 256, 60)).tobytes() for picture in made] == [
        source.crop((0, 0, 256, 60)).tobytes()
    ] * 3
    assert len({picture.tobytes() for picture in made}) == 3


def test_a_mask_of_another_size_is_brought_to_the_images(client: FlaskClient) -> None:
    original = photo()
    (made,) = pictures(send(client, image=file(original), mask=file(mask(size=(64, 64)))))
    assert (
        made.crop((0, 0, 256, 56)).tobytes()
        == Image.open(io.BytesIO(original)).crop((0, 0, 256, 56)).tobytes()
    )


def test_a_mask_that_was_brought_to_the_images_size_is_told(client: FlaskClient) -> None:
    body = send(client, image=file(photo()), mask=file(mask(size=(64, 64))))
    assert (
        body["_hal0"]["adjusted"][0].items() >= {"field": "mask", "asked": "64x64", "done": "256x256"}.items()
    )


def test_a_mask_of_a_photos_pixels_as_they_lie_is_turned_with_it(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = pattern(320, 256)
    left = Image.new("L", (320, 256), 0)
    ImageDraw.Draw(left).rectangle((0, 0, 99, 255), fill=255)
    data = encoded(lying, "PNG", exif=exif)
    (made,) = pictures(send(client, image=file(data), mask=file(encoded(left))))
    upright = lying.transpose(Image.Transpose.ROTATE_270)
    changed = ImageChops.difference(made, upright).convert("L").point(lambda v: 255 * (v > 0)).getbbox()
    assert made.size == (256, 320)
    assert changed is not None
    assert changed[3] <= 100  # what lay on the left is on top


def test_only_dall_e_2_takes_a_transparent_image_for_its_own_mask(client: FlaskClient) -> None:
    image = Image.open(io.BytesIO(photo())).convert("RGBA")
    ImageDraw.Draw(image).rectangle((64, 64, 191, 191), fill=(0, 0, 0, 0))
    tasks = [
        send(client, image=file(encoded(image)), model=model)["_hal0"]["meta"]["task"]
        for model in ("dall-e-2", "gpt-image-1", "sdxl-turbo")
    ]
    assert tasks == ["inpaint", "edit", "edit"]


# --- what arrives ----------------------------------------------------------------------------------


SPELLINGS: dict[str, Callable[[], Any]] = {
    "one file": lambda: {"image": file(photo())},
    "a list of one": lambda: {"image[]": file(photo())},
    "octet-stream": lambda: {"image": file(photo(), "upload", "application/octet-stream")},
    "a wrong type": lambda: {"image": file(photo(form="JPEG"), "x.png", "image/gif")},
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
def test_an_image_is_taken_however_it_is_sent(client: FlaskClient, spelling: str) -> None:
    assert send(client, **SPELLINGS[spelling]())["_hal0"]["meta"]["task"] == "edit"


def test_of_several_images_the_first_is_redrawn_and_that_is_told(client: FlaskClient) -> None:
    for names in (("image", "image"), ("image[]", "image[]"), ("image[1]", "image[0]")):
        first, second = photo(256, 256), photo(320, 256)
        ordered = (first, second) if names != ("image[1]", "image[0]") else (second, first)
        fields = MultiDict([("prompt", "x"), *zip(names, map(file, ordered), strict=True)])
        body = client.post(EDITS, data=fields).get_json()
        assert body["size"] == "256x256", names
        assert [note["field"] for note in body["_hal0"]["ignored"]] == ["image"]


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
    answer = client.post(EDITS, json=body)
    assert answer.status_code == 200, answer.text[:300]
    assert answer.get_json()["_hal0"]["meta"]["task"] == "inpaint"


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "P", {}), ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("PNG", "RGBA", {}),
        ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("WEBP", "RGB", {}), ("GIF", "P", {}), ("BMP", "RGB", {}),
    ],
)  # fmt: skip
def test_every_kind_of_picture_is_taken(
    client: FlaskClient, form: str, mode: str, options: dict[str, Any]
) -> None:
    image = Image.new("I;16", (256, 256), 30_000) if mode == "I;16" else None
    data = encoded(image, form) if image else photo(form=form, mode=mode, **options)
    assert send(client, image=file(data))["size"] == "256x256"


def test_a_photo_is_turned_upright(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert send(client, image=file(photo(256, 320, "JPEG", exif=exif)))["size"] == "320x256"


def test_of_an_animation_the_first_picture_is_taken(client: FlaskClient) -> None:
    frames = [Image.new("P", (256, 256), colour) for colour in (1, 2)]
    assert send(client, image=file(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))[
        "data"
    ]


def test_a_huge_image_is_brought_to_what_the_model_draws_and_that_is_told(client: FlaskClient) -> None:
    body = send(client, image=file(encoded(Image.new("RGB", (6000, 4000), "teal"), "JPEG")))
    assert body["size"] == "1024x680"
    assert (
        body["_hal0"]["adjusted"][0].items()
        >= {"field": "image", "asked": "6000x4000", "done": "1024x680"}.items()
    )


# --- variations ------------------------------------------------------------------------------------


def test_variations_need_no_prompt_and_come_as_urls(client: FlaskClient) -> None:
    answer = client.post(VARIATIONS, data={"image": file(photo()), "n": "2", "size": "256x256", "user": "x"})
    body = answer.get_json()
    assert [list(datum) for datum in body["data"]] == [["url"], ["url"]]
    assert client.get(body["data"][0]["url"]).mimetype == "image/png"
    assert body["_hal0"]["meta"]["task"] == "vary"


def test_what_a_variation_cannot_use_is_listed(client: FlaskClient) -> None:
    body = send(client, VARIATIONS, image=file(photo()), mask=file(mask()), stream="true")
    assert {note["field"] for note in body["_hal0"]["ignored"]} == {"prompt", "mask", "stream"}


# --- streams ---------------------------------------------------------------------------------------


def test_a_streamed_edit_has_events_of_its_own_name(client: FlaskClient) -> None:
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
@pytest.mark.parametrize("illegal", [False, True])
def test_gpustacks_edit_streams_and_tells_of_an_illegal_image_inside(
    client: FlaskClient, path: str, more: dict[str, str], illegal: bool
) -> None:
    image = b"no picture" if illegal else photo()
    answer = client.post(path, data={"prompt": "x", "image": file(image), "stream": "true", **more})
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    *events, last, done = events_of(answer.text)
    assert done.data == "[DONE]"
    if illegal:
        assert events[0].data["error"]["code"] == "image.invalid_image"
        assert last.raw.startswith('error: {"code":400,"message":"Invalid image')
    else:
        assert last.data["data"][0]["progress"] == 100.0
        assert "usage" in last.data


def test_an_illegal_image_is_a_plain_400_for_openais_clients(client: FlaskClient) -> None:
    refuse(client, 400, "image.invalid_image", "image", image=file(b"text"), stream="true")


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", photo()[:500], bomb(60_000, 60_000), bomb(2**31 - 1, 1), b"%PDF-1.4"],
    ids=["empty", "text", "svg", "half", "bomb", "line", "pdf"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["image", "mask"])
def test_what_is_no_picture_is_400(client: FlaskClient, field: str, data: bytes) -> None:
    fields = {"image": file(photo()), field: file(data)}
    assert refuse(client, 400, "image.invalid_image", field, **fields)


def test_a_mask_that_leaves_nothing_open_is_refused(client: FlaskClient) -> None:
    black = encoded(Image.new("L", (256, 256), 0))
    refuse(client, 400, "image.invalid_image", "mask", image=file(photo()), mask=file(black))


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
@pytest.mark.parametrize("fields", [{}, {"image": ""}, {"picture": "x"}])
def test_without_an_image_it_is_400(client: FlaskClient, path: str, fields: dict[str, str]) -> None:
    refuse(client, 400, "image.image_required", "image", path, **fields)


def test_seventeen_images_are_too_many(client: FlaskClient) -> None:
    fields = MultiDict([("prompt", "x"), *(("image[]", file(photo(8, 8))) for _ in range(17))])
    answer = client.post(EDITS, data=fields)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "image")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", "0"), ("n", "x"), ("n", "11"), ("size", "banana"), ("partial_images", "7"), ("stream", "perhaps"),
        ("output_format", "gif"), ("strength", "2"), ("strength", "much"), ("steps", "-1"), ("seed", "1.5"),
        ("response_format", "file"), ("sampler", "nope"), ("output_compression", "101"), ("lora", "[{]"), ("extra_body", "x"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_400_and_param_names_the_field(client: FlaskClient, field: str, value: str) -> None:
    answer = client.post(EDITS, data={"prompt": "x", "image": file(photo()), field: value})
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, field), answer.text[:300]


def test_an_unknown_sampler_is_answered_with_those_there_are(client: FlaskClient) -> None:
    message = refuse(client, 400, "request.invalid_value", "sampler", image=file(photo()), sampler="tcd")
    assert "euler_ancestral" in message


def test_a_field_that_is_given_twice_must_say_the_same(client: FlaskClient) -> None:
    same = MultiDict([("prompt", "x"), ("image", file(photo())), ("n", "1"), ("n", "1")])
    assert client.post(EDITS, data=same).status_code == 200
    other = MultiDict([("prompt", "x"), ("image", file(photo())), ("n", "1"), ("n", "2")])
    assert client.post(EDITS, data=other).get_json()["error"]["param"] == "n"


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "https://example.org/a.png", "HTTP://[::1]/"])
def test_an_image_by_url_is_refused_unless_the_owner_wants_it(client: FlaskClient, url: str) -> None:
    answer = client.post(EDITS, json={"prompt": "x", "images": [{"image_url": url}]})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "image.url_refused")


def test_an_image_of_the_own_network_is_refused_also_if_urls_are_fetched(make_app: MakeApp) -> None:
    client = make_app(images__fetch_urls=True).test_client()
    answer = client.post(EDITS, json={"prompt": "x", "images": [{"image_url": "http://127.0.0.1:9/a.png"}]})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "image.url_refused")


@pytest.mark.parametrize(
    "reference",
    [{"file_id": "file-1"}, {}, {"image_url": 5}, 7, ["x", ["y"]], {"image_url": {"url": None}}, True],
)
def test_a_reference_that_means_nothing_is_400(client: FlaskClient, reference: Any) -> None:
    answer = client.post(EDITS, json={"prompt": "x", "images": [reference]})
    assert answer.status_code == 400
    assert answer.get_json()["error"]["param"] == "image"


@pytest.mark.parametrize("depth", [60, 900, 960, 985])
@pytest.mark.parametrize("field", ["image", "steps", "lora", "wings", "extra_body"])
def test_what_is_nested_too_deeply_is_a_400_wherever_it_stands(
    client: FlaskClient, field: str, depth: int
) -> None:
    deep = '{"image_url":' * depth + "1" + "}" * depth
    body = f'{{"prompt": "x", "size": "256x256", "{field}": {deep}}}'
    for path in (EDITS, "/v1/images/generations"):
        answer = client.post(path, data=body, content_type="application/json")
        assert answer.status_code == 400, answer.text[:300]
    answer = client.post(EDITS, data={"prompt": "x", field: deep}, content_type="multipart/form-data")
    assert answer.status_code == 400, answer.text[:300]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "image/png"])
def test_another_content_type_is_415(client: FlaskClient, kind: str) -> None:
    answer = client.post(EDITS, data=photo(), content_type=kind)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (415, "request.wrong_content_type")


def whole_form() -> bytes:
    return b"\r\n".join(
        [
            b"--b", b'Content-Disposition: form-data; name="prompt"', b"", b"x",
            b"--b", b'Content-Disposition: form-data; name="image"; filename="a.png"', b"Content-Type: image/png", b"", photo(),
            b"--b--", b"",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("length", [0, 1, 30, 80, 200, 3000, -10, -6])
def test_a_form_that_breaks_off_is_a_clear_400(client: FlaskClient, length: int) -> None:
    answer = client.post(EDITS, data=whole_form()[:length], content_type="multipart/form-data; boundary=b")
    assert answer.status_code in (400, 422), answer.text
    assert answer.get_json()["error"]["code"] in (
        "request.malformed",
        "image.image_required",
        "image.prompt_required",
    )


def test_the_whole_form_is_taken(client: FlaskClient) -> None:
    assert (
        client.post(EDITS, data=whole_form(), content_type="multipart/form-data; boundary=b").status_code
        == 200
    )


def test_a_text_over_its_limit_is_413(client: FlaskClient) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + b"A" * 30_000_001 + b"\r\n--b--\r\n"
    )
    answer = client.post(EDITS, data=body, content_type="multipart/form-data; boundary=b")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (413, "request.too_large")


def test_a_thousand_parts_are_413(client: FlaskClient) -> None:
    fields = MultiDict([("prompt", "x"), *((f"x{index}", "1") for index in range(1100))])
    assert client.post(EDITS, data=fields, content_type="multipart/form-data").status_code == 413


# --- what stays in the engine ----------------------------------------------------------------------


@pytest.fixture
def uploads(make_app: MakeApp) -> Iterator[tuple[FlaskClient, list[tuple[str, int]]]]:
    """A client, and the name and size of everything that its application uploads."""
    client = make_app().test_client()
    engine = client.application.extensions["easel"].engine_selector.current()
    seen: list[tuple[str, int]] = []
    upload = engine._routes.upload

    def spy(data: bytes, name: str, subfolder: str, **more: Any) -> None:
        seen.append((name, len(data)))
        upload(data, name, subfolder, **more)

    engine._routes.upload = spy
    yield client, seen
    del engine._routes.upload


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_image_stays_in_the_engine(uploads: Any, fails: bool) -> None:
    client, seen = uploads
    # More pixels than the sketch engine has memory for: the job fails after the upload.
    fields = {"n": "9", "size": "1024x1024", "model": "flux-schnell"} if fails else {}
    answer = client.post(EDITS, data={"prompt": "x", "image": file(photo()), "mask": file(mask()), **fields})
    assert answer.status_code == 200
    sizes: dict[str, list[int]] = {}
    for name, size in seen:
        sizes.setdefault(name, []).append(size)
    assert len(sizes) == 2
    assert all(each[0] > 100 > each[-1] for each in sizes.values())
