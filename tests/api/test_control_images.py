"""Control images over HTTP: inputs of a workflow that are pictures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.api.test_edits import EDITS, data_url, file, mask, photo
from tests.api.test_edits import pictures as pictures_of
from tests.api.test_outpaint import difference, part
from tests.conftest import MakeApp
from tests.pictures.pictures import pattern

GENERATIONS = "/v1/images/generations"
MODEL = "sd-1.5-canny"


def draw(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "a hat", "model": MODEL, "steps": 2, "response_format": "b64_json", "seed": 3, **fields}
    response = client.post(GENERATIONS, json=body)
    assert response.status_code == 200, response.text[:500]
    return dict(response.get_json())


def error(client: FlaskClient, path: str = GENERATIONS, **fields: Any) -> dict[str, Any]:
    response = client.post(path, json={"prompt": "a hat", "model": MODEL, **fields})
    assert response.status_code == 400, response.text[:500]
    return dict(response.get_json()["error"])


def send_form(client: FlaskClient, **fields: Any) -> Any:
    fields = {"prompt": "a hat", "model": MODEL, "steps": "2", **fields}
    return client.post(EDITS, data=fields, content_type="multipart/form-data")


@pytest.mark.parametrize("model", [MODEL, "sdxl-control", "qwen-image-control", "z-image-turbo-control"])
def test_a_picture_follows_the_control_image_of_the_request(client: FlaskClient, model: str) -> None:
    fields = {"model": model, "size": "256x256"}
    body = draw(client, control_image=data_url(photo()), control_strength=0.8, **fields)
    meta = body["_hal0"]["meta"]
    assert (meta["control_strength"], body["_hal0"]["ignored"], body["_hal0"]["adjusted"]) == (0.8, [], [])
    assert "control_image" not in meta
    assert body["data"] != draw(client, **fields)["data"]
    assert (
        body["data"] != draw(client, control_image=data_url(photo()), control_strength=0.5, **fields)["data"]
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"control_image": {"image_url": data_url(photo())}},
        {"control_image": [data_url(photo())]},
        {"control_image": data_url(photo()).partition(",")[2]},
        {"controlImage": data_url(photo())},
        {"controlnet_image": data_url(photo()), "controlnet_conditioning_scale": 1.0},
        {"extra_body": {"control_image": data_url(photo()), "control_end": 1}},
    ],
)
def test_json_may_have_it_in_several_forms(client: FlaskClient, fields: dict[str, Any]) -> None:
    assert (
        draw(client, size="256x256", **fields)["data"]
        == (draw(client, size="256x256", control_image=data_url(photo()))["data"])
    )


def test_without_a_size_the_picture_has_the_shape_of_the_control_image(client: FlaskClient) -> None:
    body = draw(client, control_image=data_url(photo(600, 400)))
    assert (body["size"], body["_hal0"]["adjusted"]) == ("624x416", [])
    body = draw(client, control_image=data_url(photo(600, 400)), size="256x256")
    assert [(note["field"], note["done"]) for note in body["_hal0"]["adjusted"]] == [
        ("control_image", "256x256")
    ]


def test_without_the_image_the_plain_graph_is_drawn_and_its_settings_are_listed(client: FlaskClient) -> None:
    body = draw(client, control_strength=0.5, size="256x256")
    assert [note["field"] for note in body["_hal0"]["ignored"]] == ["control_strength"]
    for nothing in (None, "", []):
        assert draw(client, control_image=nothing, size="256x256")["_hal0"]["ignored"] == []


@pytest.mark.parametrize("as_file", [False, True])
def test_an_edit_takes_it_beside_the_image_and_keeps_what_the_mask_keeps(
    client: FlaskClient, as_file: bool
) -> None:
    control = file(photo(300, 300)) if as_file else data_url(photo(300, 300))
    response = send_form(client, image=file(photo()), mask=file(mask()), control_image=control)
    assert response.status_code == 200, response.text[:300]
    (picture,) = pictures_of(response.get_json())
    assert difference(part(picture, 0, 0, 60), part(pattern(256, 256).convert("RGB"), 0, 0, 60)) == 0
    assert response.get_json()["_hal0"]["meta"]["control_strength"] == 1.0


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"control_image": "no picture"}, "image.invalid_image", "control_image"),
        ({"control_image": "https://example.org/a.png"}, "image.url_refused", "control_image"),
        ({"control_image": [data_url(photo()), data_url(photo())]}, "request.invalid_value", "control_image"),
        (
            {"control_image": data_url(photo()), "control_strength": 7},
            "request.invalid_value",
            "control_strength",
        ),
        (
            {"control_image": data_url(photo()), "control_preprocess": "depth"},
            "request.invalid_value",
            "control_preprocess",
        ),
    ],
)
def test_what_is_wrong_is_refused(client: FlaskClient, fields: dict[str, Any], code: str, param: str) -> None:
    found = error(client, **fields)
    assert (found["code"], found["param"]) == (code, param)


def test_a_model_without_one_names_those_that_take_it(client: FlaskClient) -> None:
    for name in ("control_image", "controlnet_image"):
        found = error(client, model="sd-1.5", **{name: data_url(photo())})
        assert (found["code"], found["param"]) == ("request.field_not_supported", "control_image")
        assert "sdxl-control" in found["message"]
        assert MODEL in found["details"]["models"]
    response = send_form(client, image=file(photo()), model="sd-1.5", control_image=file(photo()))
    assert response.get_json()["error"]["param"] == "control_image"


@pytest.mark.parametrize("name", ["controlnet_image", "controlImage", "control_net_image[]"])
def test_a_file_may_have_an_alias_too(client: FlaskClient, name: str) -> None:
    fields = {"image": data_url(photo()), "seed": "3"}
    first, second = (
        send_form(client, **fields, **{each: file(mask())}).get_json() for each in (name, "control_image")
    )
    assert first["data"] == second["data"]
    assert first["data"] != send_form(client, **fields).get_json()["data"]


def test_the_list_of_models_has_it(client: FlaskClient) -> None:
    assert client.get(f"/v1/models/{MODEL}").get_json()["image_inputs"] == ["control_image"]
    assert client.get("/v1/models/sd-1.5").get_json()["image_inputs"] == []


def test_a_missing_control_net_is_named_before_anything_is_drawn(
    make_app: MakeApp, client: FlaskClient, catalogue_files: dict[str, list[str]]
) -> None:
    from sketch import SketchProcess
    from tests.conftest import NODES

    files = {folder: names for folder, names in catalogue_files.items() if folder != "controlnet"}
    with SketchProcess(nodes=NODES, files=files) as sketch:
        other = make_app(engine__url=sketch.url).test_client()
        response = other.post(
            GENERATIONS, json={"prompt": "a hat", "model": MODEL, "control_image": data_url(photo())}
        )
        assert (response.status_code, response.get_json()["error"]["code"]) == (503, "model.files_missing")
        (missing,) = response.get_json()["error"]["details"]["files"]
        assert (missing["name"], missing["folder"]) == (
            "control_v11p_sd15_canny_fp16.safetensors",
            "models/controlnet",
        )


def test_a_control_image_must_be_an_upload(client: FlaskClient) -> None:
    found = error(client, control_image=json.dumps({"file_id": "file-1"}))
    assert (found["code"], found["param"]) == ("request.invalid_value", "control_image")
