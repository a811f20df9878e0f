"""What clients of other servers send: shapes, images in generations, numbers as text, fields in the prompt. Each is
honoured or refused; nothing that changes the meaning is only listed as ignored."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.field_names import canonical_fields
from api.unsupported_fields import REFUSED_FIELDS, REFUSED_WITH_AN_IMAGE, refuse_unsupported
from errors import FieldNotSupported
from tests.api.test_edits import EDITS, VARIATIONS, data_url, mask, photo, pictures
from tests.api.test_edits import file as upload
from tests.api.test_edits import send as send_form
from tests.api.test_generations import PATH, picture
from tests.conftest import SMALL_CATALOGUE, MakeApp


def draw(client: FlaskClient, path: str = PATH, **fields: Any) -> dict[str, Any]:
    response = client.post(path, json={"prompt": "a cat", **fields})
    assert response.status_code == 200, response.text[:500]
    return dict(response.get_json())


def refuse(client: FlaskClient, code: str, param: str, path: str = PATH, **fields: Any) -> str:
    response = client.post(path, json={"prompt": "a cat", **fields})
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), response.text[:500]
    return str(error["message"])


def listed(body: dict[str, Any], kind: str) -> list[str]:
    return [note["field"] for note in body["_hal0"][kind]]


# --- sizes and shapes ------------------------------------------------------------------------------

SHAPES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"width": 768, "height": 512}, (768, 512)),
    ({"width": "768", "height": "512"}, (768, 512)),
    ({"width": 768, "height": 512, "size": "768x512"}, (768, 512)),
    ({"width": 768, "height": 512, "size": "auto"}, (768, 512)),
    ({"width": 768, "aspect_ratio": "3:2"}, (768, 512)),
    ({"height": 512, "aspect_ratio": "3/2"}, (768, 512)),
    ({"height": 512, "size": "768x512"}, (768, 512)),
    ({"extra_body": {"width": 768, "height": 512}}, (768, 512)),
    ({"aspect_ratio": "1:1"}, (512, 512)),
    ({"aspect_ratio": "16:9"}, (680, 384)),
    ({"aspectRatio": "9:16"}, (384, 680)),
    ({"aspect_ratio": 2}, (720, 360)),
    ({"aspect_ratio": "landscape"}, (624, 416)),
    ({"aspect_ratio": "auto"}, (512, 512)),
    ({"image_size": "1K"}, (1024, 1024)),
    ({"image_size": "1K", "aspect_ratio": "16:9"}, (1024, 576)),
    ({"imageSize": "0.5k", "aspect_ratio": "1:1"}, (512, 512)),
    ({"resolution": "2K"}, (1024, 1024)),
    ({"image_width": 768, "image_height": "512"}, (768, 512)),
    ({"targetWidth": 768, "targetHeight": 512}, (768, 512)),
    ({"w": 768, "h": 512}, (768, 512)),
    ({"Size": "768x512"}, (768, 512)),
    ({"output_size": "768x512"}, (768, 512)),
    ({"imageAspectRatio": "16:9"}, (680, 384)),
    ({"AspectRatio": "16:9"}, (680, 384)),
    ({"aspect-ratio": "16:9"}, (680, 384)),
    ({"imageConfig": {"aspectRatio": "16:9", "imageSize": "0.5K"}}, (680, 384)),
    ({"parameters": {"size": "768*512"}}, (768, 512)),
    ({"extra_body": {"imageConfig": {"aspectRatio": "16:9"}}}, (680, 384)),
    ({"size": "2K", "aspect_ratio": "3:4"}, (768, 1024)),
    ({"size": "16:9"}, (680, 384)),
    ({"size": "square"}, (512, 512)),
    ({"image_size": "portrait"}, (416, 624)),
    ({"image_size": "1024x768"}, (1024, 768)),
    ({"image_size": "1024*768"}, (1024, 768)),
    ({"image_size": {"width": 768, "height": "512"}}, (768, 512)),
    ({"image_size": "landscape_4_3"}, (1024, 768)),
    ({"image_size": "1K", "size": "1024x1024"}, (1024, 1024)),
    ({"aspect_ratio": "16:9", "size": "1792x1024"}, (1024, 584)),
    ({"width": 1536, "height": 1024}, (1024, 680)),
    ({"ratio": "1:2", "megapixels": 0.25}, (360, 720)),
]


@pytest.mark.parametrize(("fields", "size"), SHAPES)
def test_every_way_to_give_a_size_is_drawn_in_that_shape(
    client: FlaskClient, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    body = draw(client, **fields)
    assert picture(client, body["data"][0]).size == size
    assert body["size"] == f"{size[0]}x{size[1]}"
    assert body["_hal0"]["ignored"] == []
    is_smaller = any(text in str(fields) for text in ("2K", "1792", "1536", "1K', 'aspect_ratio"))
    assert len(body["_hal0"]["adjusted"]) == (1 if is_smaller else 0)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"width": "512", "height": "256"}, (512, 256)),
        ({"width": "512"}, (512, 384)),
        ({"aspect_ratio": "1:1"}, (552, 552)),
        ({"image_size": "0.5K"}, (584, 440)),
        ({"aspect_ratio": "match_input_image"}, (640, 480)),
    ],
)
@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
def test_edits_and_variations_are_drawn_in_the_requested_shape(
    client: FlaskClient, path: str, fields: dict[str, str], size: tuple[int, int]
) -> None:
    body = send_form(
        client,
        path,
        model="sd-1.5",
        steps="1",
        image=upload(photo(640, 480)),
        response_format="b64_json",
        **fields,
    )
    assert (pictures(body)[0].size, body["size"]) == (size, f"{size[0]}x{size[1]}")


@pytest.mark.parametrize(
    ("fields", "param", "names"),
    [
        ({"size": "512x512", "width": 768, "height": 512}, "width", ("size", "width", "height")),
        ({"size": "512x512", "width": 768}, "width", ("size", "width")),
        ({"size": "1024x1024", "aspect_ratio": "16:9"}, "aspect_ratio", ("size", "aspect_ratio")),
        (
            {"width": 512, "height": 512, "aspect_ratio": "16:9"},
            "aspect_ratio",
            ("width", "height", "aspect_ratio"),
        ),
        ({"size": "512x512", "image_size": "2K"}, "image_size", ("size", "image_size")),
        ({"size": "512x512", "image_size": "512x768"}, "image_size", ("size", "image_size")),
        ({"size": "1K", "image_size": "2K"}, "image_size", ("size", "image_size")),
        ({"size": "512x512", "megapixels": 4}, "megapixels", ("size", "megapixels")),
        ({"width": 512}, "width", ("width", "height", "aspect_ratio")),
        ({"image_size": "huge"}, "image_size", ("image_size", "2K")),
        ({"image_size": {"width": 512}}, "image_size", ("width", "height")),
        ({"image_size": "0K"}, "image_size", ("1K",)),
        ({"aspect_ratio": "wide"}, "aspect_ratio", ("16:9",)),
        ({"aspect_ratio": "16:0"}, "aspect_ratio", ("16:9",)),
        ({"aspect_ratio": "999:1"}, "aspect_ratio", ("16:9",)),
        ({"aspect_ratio": "8:1"}, "aspect_ratio", ("8:1", "1024x256")),
        ({"size": "0x512", "width": 5}, "width", ("width",)),
    ],
)
def test_contradictions_and_shapes_that_are_not_valid_are_refused_and_name_the_fields(
    client: FlaskClient, fields: dict[str, Any], param: str, names: tuple[str, ...]
) -> None:
    message = refuse(client, "image.size_not_allowed", param, **fields)
    assert all(name in message for name in names), message


@pytest.mark.parametrize("name", ["size", "image_size", "aspect_ratio"])
def test_a_long_text_is_not_repeated_in_the_message(client: FlaskClient, name: str) -> None:
    assert len(refuse(client, "image.size_not_allowed", name, **{name: "x" * 100_000})) < 300


@pytest.mark.parametrize("fields", [{"sampler": "x" * 100_000}, {"lora": "x" * 100_000}])
def test_a_long_text_is_not_repeated_in_the_details(client: FlaskClient, fields: dict[str, Any]) -> None:
    response = client.post(PATH, json={"prompt": "a cat", **fields})
    assert response.status_code == 400
    assert len(response.data) < 10_000


def test_spaces_in_a_ratio_are_not_repeated(client: FlaskClient) -> None:
    wide = "16" + " " * 100_000 + ":1"
    response = client.post(PATH, json={"prompt": "a cat", "aspect_ratio": wide})
    assert response.status_code == 400
    assert len(response.data) < 10_000


@pytest.mark.parametrize("value", [0, -1, 1.5, "wide", True, 10**6])
def test_a_side_must_be_a_whole_number(client: FlaskClient, value: Any) -> None:
    refuse(client, "request.invalid_value", "width", width=value, height=512)


def test_a_size_that_our_model_cannot_draw_is_refused_and_the_nearest_is_named(client: FlaskClient) -> None:
    message = refuse(client, "image.size_not_allowed", "size", model="sdxl-turbo", size="1500x1000")
    assert "1024x680" in message


# --- images in generations -------------------------------------------------------------------------

IMAGE_FIELDS = [
    *("image", "images", "image[]", "image_url", "image_urls", "input_image", "input_images", "init_image"),
    *(
        "init_images",
        "ref_image",
        "ref_images",
        "reference_image",
        "reference_images",
        "reference_image_urls",
    ),
    *("source_image", "base_image", "image_base64", "image_b64", "imageUrl", "file"),
    *("initImage", "refImages", "referenceImages", "inputImage", "ImageURL", "image-url", "imageBase64"),
    *("image_input", "image_file", "image_1", "image2", "img", "img_url", "picture", "photo", "user_image"),
    *("conditioning_image", "first_frame_image", "input_reference", "base64_image"),
]


@pytest.mark.parametrize("name", IMAGE_FIELDS)
def test_an_image_in_a_generation_is_drawn_from_as_in_an_edit(client: FlaskClient, name: str) -> None:
    url = data_url(photo())
    fields = {"seed": 5, "response_format": "b64_json", "strength": 0.5}
    body = draw(client, **fields, **{name: [url] if name.endswith(("s", "[]")) else url})
    edit = draw(client, EDITS, **fields, image=url)
    assert body["data"] == edit["data"]
    assert body["_hal0"]["meta"]["task"] == "edit"
    assert body["_hal0"]["ignored"] == []


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
@pytest.mark.parametrize("name", [*IMAGE_FIELDS, "url", "urls"])
def test_edits_and_variations_take_the_same_names(client: FlaskClient, path: str, name: str) -> None:
    body = draw(client, path, prompt="x" if path == EDITS else None, **{name: data_url(photo(300, 260))})
    assert body["size"] == "300x260"


def test_a_mask_in_a_generation_limits_the_drawing_and_alone_is_refused(client: FlaskClient) -> None:
    image, hole = data_url(photo()), data_url(mask())
    assert draw(client, image=image, mask=hole)["_hal0"]["meta"]["task"] == "inpaint"
    assert "no image" in refuse(client, "image.image_required", "image", mask=hole)


def test_a_generation_with_an_image_has_the_response_form_of_generations(client: FlaskClient) -> None:
    body = draw(client, image=data_url(photo()))
    assert list(body["data"][0]) == ["url"]
    response = client.post(
        PATH, json={"prompt": "x", "image": data_url(photo()), "stream": True, "partial_images": 0}
    )
    assert "event: image_generation.completed" in response.text
    assert "image_edit" not in response.text


@pytest.mark.parametrize("value", [None, "", [], {}, False, [""], [None]])
def test_empty_image_fields_mean_that_there_is_no_image(client: FlaskClient, value: Any) -> None:
    body = draw(client, image=value, ref_images=value, mask=value)
    assert body["_hal0"]["meta"]["task"] == "generate"
    assert body["_hal0"]["ignored"] == []


@pytest.mark.parametrize("value", ["not an image", 5, {"x": 1}, True])
def test_an_image_that_is_not_one_is_refused(client: FlaskClient, value: Any) -> None:
    response = client.post(PATH, json={"prompt": "a cat", "image": value})
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, "image")


def test_a_model_that_only_draws_from_a_prompt_refuses_an_image_and_names_the_path(
    make_app: MakeApp, tmp_path: Any
) -> None:
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text()
    title = "title: SDXL Turbo, its own schedule\n    tasks: "
    text = text.replace(f"{title}[generate, edit, inpaint, vary]", f"{title}[generate]")
    lines = [
        line
        for line in text.splitlines()
        if "minimum: 0.4" not in line and "high: {strength: 0.4}" not in line
    ]
    text = "\n".join(lines).replace(
        "x-when: [{if: {task: [edit, inpaint, vary]}, then: {default: 2, maximum: 4}}]", "x-tasks: [generate]"
    )
    (tmp_path / "catalogue.yaml").write_text(text)
    client = make_app(catalogue=str(tmp_path / "catalogue.yaml")).test_client()
    message = refuse(client, "image.image_not_supported", "image", image=data_url(photo()))
    assert EDITS in message
    assert "flux-schnell" in message
    assert draw(client)["_hal0"]["meta"]["task"] == "generate"


def test_an_image_url_in_a_generation_is_refused_and_names_the_setting(client: FlaskClient) -> None:
    assert "images.fetch_urls" in refuse(
        client, "image.url_refused", "image", image_url="https://example.com/a.png"
    )
    response = client.post(EDITS, data={"prompt": "x", "url": "https://example.com/a.png"},
                           content_type="multipart/form-data")  # fmt: skip
    assert response.get_json()["error"]["code"] == "image.url_refused"


def test_a_form_sent_to_generations_names_the_path_for_images(client: FlaskClient) -> None:
    data = {"prompt": "x", "image": (io.BytesIO(photo()), "a.png")}
    response = client.post(PATH, data=data, content_type="multipart/form-data")
    assert response.status_code == 415
    assert EDITS in response.get_json()["error"]["message"]


# --- fields that change the meaning ----------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_a_field_that_changes_the_meaning_is_refused_unless_it_is_off_or_an_input(name: str) -> None:
    with pytest.raises(FieldNotSupported) as caught:
        refuse_unsupported({name: "anime"}, {}, has_image=False)
    assert caught.value.param == name
    assert REFUSED_FIELDS[name] in caught.value.message
    refuse_unsupported({name: "anime"}, {name: {"type": "string"}}, has_image=False)
    for off in (None, "", False, 0, [], {}, "none", {"enabled": False}):
        refuse_unsupported({name: off}, {}, has_image=True)


@pytest.mark.parametrize("name", REFUSED_WITH_AN_IMAGE)
def test_a_field_about_the_image_is_refused_only_with_an_image(name: str) -> None:
    refuse_unsupported({name: 0.5}, {}, has_image=False)
    with pytest.raises(FieldNotSupported):
        refuse_unsupported({name: 0.5}, {}, has_image=True)


@pytest.mark.parametrize("name", ["attachments", "messages", "face", "anything_new"])
@pytest.mark.parametrize("path", [PATH, EDITS])
def test_an_image_in_any_other_field_is_refused(client: FlaskClient, name: str, path: str) -> None:
    url, image = data_url(photo()), {"image": data_url(photo())} if path == EDITS else {}
    for value in (url, url.partition(",")[2], [{"content": [{"image_url": {"url": url}}]}]):
        refuse(client, "request.field_not_supported", name, path, **image, **{name: value})


@pytest.mark.parametrize("name", ["control_image", "style_image", "anything_new"])
def test_a_file_in_any_other_field_is_refused(client: FlaskClient, name: str) -> None:
    fields = {"prompt": "a hat", "image": upload(photo()), name: upload(photo())}
    response = client.post(EDITS, data=fields, content_type="multipart/form-data")
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "request.field_not_supported", name)


def test_a_numbered_image_field_is_an_image(client: FlaskClient) -> None:
    body = send_form(client, image_2=upload(photo(320, 260)))
    assert (body["size"], listed(body, "ignored")) == ("320x260", [])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("stylePreset", "style_preset"),
        ("ControlNet", "controlnet"),
        ("controlImage", "control_image"),
        ("LoRAs", "lora"),
        ("numInferenceSteps", "steps"),
        ("CFGScale", "cfg"),
        ("Model", "model"),
    ],
)
def test_names_in_camel_case_are_the_same_names(name: str, known: str) -> None:
    fields, _ = canonical_fields({"prompt": "a cat", name: "x"})
    assert set(fields) == {"prompt", known}


def test_both_spellings_of_a_name_and_unknown_names_are_kept() -> None:
    body = {"aspect_ratio": "1:1", "aspectRatio": "16:9", "safetyChecker": True, "imageSize": "1K"}
    fields, _ = canonical_fields(body)
    assert fields == {
        "aspect_ratio": "1:1",
        "aspectRatio": "16:9",
        "safetyChecker": True,
        "image_size": "1K",
    }


def test_image_strength_is_refused_with_an_image_and_listed_without(client: FlaskClient) -> None:
    refuse(
        client, "request.field_not_supported", "image_strength", image=data_url(photo()), image_strength=0.5
    )
    assert listed(draw(client, image_strength=0.5), "ignored") == ["image_strength"]


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        ({"style": "vivid"}, False),
        ({"style": "natural"}, False),
        ({"style": "anime"}, True),
        ({"upscaler": "4x-UltraSharp"}, True),
        ({"tiling": True}, True),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, True),
        ({"controlnet": {"enabled": False}}, False),
        ({"lora_weights": "https://example.com/a.safetensors"}, True),
        ({"orientation": "landscape"}, True),
        ({"metadata": {"size": "big"}}, False),
        ({"enable_hr": True, "clip_skip": 2}, True),
        ({"clip_skip": 2, "user": "x"}, False),
    ],
)
def test_what_only_tunes_the_picture_is_listed(
    client: FlaskClient, fields: dict[str, Any], is_refused: bool
) -> None:
    if is_refused:
        refuse(client, "request.field_not_supported", next(iter(fields)), **fields)
    else:
        assert set(listed(draw(client, **fields), "ignored")) == set(fields)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"num_images": 2}, 2),
        ({"num_outputs": "2"}, 2),
        ({"batch_size": 2}, 2),
        ({"batch_size": 2, "n_iter": 2}, 4),
        ({"batch_size": 1, "batch_count": 3}, 3),
        ({"n": 2, "batch_size": 2}, 2),
        ({"n": 2, "batch_size": 1, "n_iter": 1}, 2),
    ],
)
def test_the_number_of_pictures_has_many_names(
    client: FlaskClient, fields: dict[str, Any], count: int
) -> None:
    assert len(draw(client, size="256x256", **fields)["data"]) == count


def test_two_numbers_of_pictures_are_refused(client: FlaskClient) -> None:
    message = refuse(client, "request.invalid_value", "batch_size", n=1, batch_size=4)
    assert "`n`" in message
    refuse(client, "request.invalid_value", "n", batch_size=10**9, n_iter=10**9)


# --- numbers and booleans as text ------------------------------------------------------------------


def test_numbers_and_booleans_in_json_may_be_text(client: FlaskClient) -> None:
    fields = {
        "n": "1", "seed": "42", "steps": "3", "cfg_scale": "4.5", "strength": "0.6", "output_compression": " 80 ",
        "output_format": "jpeg", "stream": "false", "lora": [{"name": "lcm-sd-1.5", "strength": "0.5"}],
        "image": data_url(photo()),
    }  # fmt: skip
    expected = {"seed": 42, "steps": 3, "cfg": 4.5, "strength": 0.6}
    for body in (fields, {"extra_body": fields}):
        meta = draw(client, model="sd-1.5", **body)["_hal0"]["meta"]
        assert meta.items() >= expected.items()
        assert meta["loras"] == [{"name": "lcm-sd-1.5", "strength": 0.5}]


@pytest.mark.parametrize(
    ("name", "value", "is_refused"),
    [
        ("seed", "abc", True), ("seed", "4.5", True), ("seed", "-2", True), ("seed", "", False), ("seed", "null", False),
        ("seed", 42.0, False), ("seed", "42.0", False), ("seed", "12345678901234567890", False), ("seed", "-1", False),
        ("n", 1.0, False), ("n", "1.0", False), ("n", "many", True), ("n", "9" * 5000, True),
        ("steps", "four", True), ("cfg", "1e999", True), ("stream", "maybe", True), ("stream", "True", True),
        ("lora", [{"name": "lcm-sd-1.5", "strength": "weak"}], True), ("prompt", ["a cat"], True), ("model", 5, True),
        ("negative_prompt", 3, True), ("stream_options", {"include_usage": "perhaps"}, True),
    ],
)  # fmt: skip
def test_text_that_is_no_number_is_refused_with_its_param(
    client: FlaskClient, name: str, value: Any, is_refused: bool
) -> None:
    response = client.post(PATH, json={"prompt": "a cat", "model": "sd-1.5", "size": "256x256", name: value})
    if name == "stream" and value == "True":
        assert response.mimetype == "text/event-stream"
    elif is_refused:
        assert (response.status_code, response.get_json()["error"]["param"]) == (400, name)
    else:
        assert response.status_code == 200, response.text


def test_a_text_that_looks_like_a_number_stays_text_where_text_is_meant(client: FlaskClient) -> None:
    body = draw(client, prompt="2024", negative_prompt="1999", model="sd-1.5", user="17")
    assert body["_hal0"]["meta"]["negative_prompt"] == "1999"
    assert body["_hal0"]["ignored"][0]["asked"] == "17"


# --- fields in the prompt --------------------------------------------------------------------------


def prompt_in(client: FlaskClient, **fields: Any) -> tuple[str, dict[str, Any]]:
    """The prompt in the metadata of the picture, and the response."""
    body = draw(client, response_format="b64_json", **fields)
    return str(picture(client, body["data"][0]).info["parameters"]).splitlines()[0], body


@pytest.fixture
def labelled(make_app: MakeApp) -> FlaskClient:
    """A client of a server that writes the prompt into its pictures."""
    return make_app(images__metadata="parameters").test_client()


def extra_args(**fields: Any) -> str:
    return f"robots playing chess <sd_cpp_extra_args>{json.dumps(fields)}</sd_cpp_extra_args>"


def test_sd_cpp_extra_args_are_fields_and_no_text(labelled: FlaskClient) -> None:
    args = {
        "seed": 42, "width": 256, "height": "320", "negative_prompt": "fog", "batch_count": 1,
        "sample_params": {"sample_steps": 6, "sample_method": "euler_a", "scheduler": "karras", "guidance": {"txt_cfg": 5}},
    }  # fmt: skip
    text, body = prompt_in(labelled, model="sd-1.5", prompt=extra_args(**args), seed=7)
    meta = body["_hal0"]["meta"]
    assert text == "robots playing chess"
    assert meta.items() >= {"seed": 42, "steps": 6, "cfg": 5.0, "sampler": "euler_ancestral"}.items()
    assert (meta["schedule"], meta["negative_prompt"], body["size"]) == ("karras", "fog", "256x320")
    assert listed(body, "adjusted") == ["prompt"]
    assert listed(body, "ignored") == ["seed"]  # the prompt wins


def test_unknown_extra_args_are_listed_and_those_that_change_the_meaning_refused(client: FlaskClient) -> None:
    assert listed(draw(client, prompt=extra_args(eta=0.5)), "ignored") == ["eta"]
    refuse(client, "request.field_not_supported", "control_image", prompt=extra_args(control_image="x"))
    refuse(
        client, "image.size_not_allowed", "width", prompt=extra_args(width=300, height=300), size="512x512"
    )


@pytest.mark.parametrize(
    "text", ["{", "[1]", "", '{"seed": NaN}', '{"a":' + "[" * 60 + "]" * 60 + "}", '{"seed": 4']
)
def test_extra_args_that_are_not_valid_are_refused(client: FlaskClient, text: str) -> None:
    response = client.post(PATH, json={"prompt": f"a <sd_cpp_extra_args>{text}</sd_cpp_extra_args>"})
    assert response.status_code == 400
    refuse(client, "request.invalid_value", "prompt", prompt="a <sd_cpp_extra_args>{}")


def test_many_extra_args_and_many_values_in_them_are_refused_before_they_are_parsed(
    client: FlaskClient,
) -> None:
    tag = "<sd_cpp_extra_args>{}</sd_cpp_extra_args>"
    assert "more than 16" in refuse(client, "request.invalid_value", "prompt", prompt=tag * 500_000)
    values = "{}," * 10_000
    prompt = f'<sd_cpp_extra_args>{{"a": [{values}1]}}</sd_cpp_extra_args>'
    assert "more than 10000 values" in refuse(client, "request.invalid_value", "prompt", prompt=prompt)


def test_a_field_that_loses_against_another_is_listed(client: FlaskClient) -> None:
    body = draw(client, input={"prompt": "a dog", "seed": 3}, parameters={"size": "256x256"}, size="512x512")
    assert listed(body, "ignored") == ["parameters.size", "input.prompt"]
    assert body["_hal0"]["images"][0]["seed"] == 3
    body = draw(client, prompt=f"a cat {extra_args(prompt='a dog', seed=4)}")
    assert listed(body, "ignored") == ["prompt"]


def test_localais_negative_prompt_behind_a_pipe_is_one(labelled: FlaskClient) -> None:
    text, body = prompt_in(
        labelled, prompt="a castle|blurry, low quality", step=25, model="sd-1.5", size="256x256"
    )
    assert (text, body["_hal0"]["meta"]["negative_prompt"]) == ("a castle", "blurry, low quality")
    assert body["_hal0"]["meta"]["steps"] == 25
    assert listed(body, "adjusted") == ["prompt"]


@pytest.mark.parametrize(
    ("prompt", "is_listed"),
    [
        ("a castle|blurry", True),
        ("a {red|blue} castle", False),
        ("a [cow|horse]", False),
        ("a | b | c", False),
        ("a castle", False),
    ],
)
def test_a_pipe_of_other_clients_is_drawn_and_a_single_one_is_listed(
    labelled: FlaskClient, prompt: str, is_listed: bool
) -> None:
    text, body = prompt_in(labelled, prompt=prompt)
    assert text == prompt
    assert listed(body, "ignored") == (["prompt"] if is_listed else [])


@pytest.mark.parametrize("prompt", ["a | b | c", "a {red|blue} castle|blurry"])
def test_localais_pipes_that_are_drawn_are_listed(client: FlaskClient, prompt: str) -> None:
    assert listed(draw(client, prompt=prompt, step=1), "ignored") == ["prompt"]


def test_a_lora_tag_is_applied_and_no_text(labelled: FlaskClient, make_app: MakeApp) -> None:
    prompt = "a castle <lora:lcm-sd-1.5:0.8>"
    text, body = prompt_in(labelled, model="sd-1.5", prompt=prompt)
    assert text == "a castle"
    parameters = picture(labelled, body["data"][0]).info["parameters"]
    assert 'Loras: "lcm-sd-1.5: 0.8"' in parameters
    assert body["_hal0"]["meta"]["loras"] == [{"name": "lcm-sd-1.5", "strength": 0.8}]
    assert listed(body, "adjusted") == ["prompt"]
    message = refuse(labelled, "request.invalid_value", "prompt", model="sd-1.5", prompt="a <lora:nope:1>")
    assert "lcm-sd-1.5" in message
    client = make_app(images__lora_tags="refuse").test_client()
    refuse(client, "request.invalid_value", "prompt", model="sd-1.5", prompt=prompt)


# --- names -----------------------------------------------------------------------------------------


def test_sampler_name_and_scheduler_of_a1111(client: FlaskClient) -> None:
    body = draw(client, model="sd-1.5", sampler_name="Euler a", scheduler="Karras", steps=2)
    assert body["_hal0"]["meta"].items() >= {"sampler": "euler_ancestral", "schedule": "karras"}.items()
    body = draw(client, model="sd-1.5", sampler="DPM++ 2M Karras", steps=2)
    assert body["_hal0"]["meta"].items() >= {"sampler": "dpmpp_2m", "schedule": "karras"}.items()
    assert body["_hal0"]["ignored"] == body["_hal0"]["adjusted"] == []


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        *(({"quality": quality}, "b64_json") for quality in ("auto", "low", "medium", "high", "HIGH", "max")),
        *(({"quality": quality}, "url") for quality in ("standard", "hd", "", 5)),
        ({"quality": "auto", "response_format": "url"}, "url"),
        ({"model": "openai/gpt-image-1"}, "b64_json"),
    ],
)
def test_the_quality_tells_which_of_openais_dialects_the_client_speaks(
    client: FlaskClient, fields: dict[str, Any], key: str
) -> None:
    assert list(draw(client, size="256x256", **fields)["data"][0]) == [key]


@pytest.mark.parametrize(
    ("name", "model"),
    [("flux", "flux-schnell"), ("FLUX", "flux-schnell"), ("sdxl", "sdxl-base-1.0"), ("sdxl_turbo", "sdxl-turbo"),
     ("openai/flux-schnell", "flux-schnell"), ("openai/gpt-image-2", "sdxl-turbo")],
)  # fmt: skip
def test_names_of_other_servers_are_aliases(client: FlaskClient, name: str, model: str) -> None:
    assert draw(client, model=name, size="256x256")["_hal0"]["model"] == model


@pytest.mark.parametrize("name", ["remove_background", "transparent_background"])
def test_names_for_a_transparent_background_lead_to_the_field_that_makes_one(name: str) -> None:
    assert "`background: transparent`" in REFUSED_FIELDS[name]
