"""POST /v1/images/generations."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from PIL import Image

from tests.conftest import ROOT, SMALL_CATALOGUE, MakeApp

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256"}


def draw(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    response = client.post(PATH, json={**SMALL, **fields})
    assert response.status_code == 200, response.text
    body = response.get_json()
    schema = json.loads((ROOT / "schemas/image_response.schema.json").read_text())
    Draft202012Validator(schema).validate(body)
    return dict(body)


def picture(client: FlaskClient, datum: dict[str, str]) -> Image.Image:
    if "url" in datum:
        return Image.open(io.BytesIO(client.get(datum["url"]).data))
    return Image.open(io.BytesIO(base64.b64decode(datum["b64_json"], validate=True)))


def refuse(client: FlaskClient, status: int, code: str, param: str | None, **fields: Any) -> dict[str, Any]:
    response = client.post(PATH, json={**SMALL, **fields})
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code), response.text
    assert response.get_json()["error"]["param"] == param
    return dict(response.get_json()["error"])


# --- the response ----------------------------------------------------------------------------------


def test_a_prompt_alone_returns_an_absolute_png_url_on_the_origin_of_the_request(
    client: FlaskClient,
) -> None:
    response = client.post(PATH, json={"prompt": "a cat"}, base_url="http://localhost:8080")
    body = response.get_json()
    assert list(body["data"][0]) == ["url"]
    assert re.fullmatch(r"http://localhost:8080/api/images/cache/[0-9a-f-]{36}\.png", body["data"][0]["url"])
    assert picture(client, body["data"][0]).size == (512, 512)
    assert response.headers["x-request-id"]


def test_b64_json_is_plain_base64_without_url(client: FlaskClient) -> None:
    body = draw(client, response_format="b64_json")
    assert list(body["data"][0]) == ["b64_json"]
    assert picture(client, body["data"][0]).format == "PNG"


def test_the_response_contains_model_workflow_checkpoint_and_all_values(client: FlaskClient) -> None:
    hal0 = draw(client, seed=5, steps=2)["_hal0"]
    assert (hal0["model"], hal0["workflow"]) == ("sdxl-turbo", "sdxl_turbo_simple")
    assert hal0["checkpoint"] == "sd_xl_turbo_1.0_fp16.safetensors"
    expected = {"template": "sdxl_turbo_simple.json.j2", "width": 256, "height": 256, "seed": 5, "steps": 2}
    assert hal0["meta"].items() >= expected.items()
    assert hal0["engine"] == "sketch"
    assert "no model ran" in hal0["notice"]


def test_the_checkpoint_of_a_split_model_is_its_diffusion_model(client: FlaskClient) -> None:
    assert draw(client, model="flux-schnell")["_hal0"]["checkpoint"] == "flux1-schnell.safetensors"


def test_the_same_seed_gives_the_same_bytes_and_no_seed_gives_different_ones(client: FlaskClient) -> None:
    def data(**fields: Any) -> str:
        return str(draw(client, response_format="b64_json", **fields)["data"][0]["b64_json"])

    assert data(seed=1) == data(seed=1) != data(seed=2)
    assert data() != data()


def test_a_random_seed_is_returned_and_reproduces_the_picture(client: FlaskClient) -> None:
    first = draw(client, response_format="b64_json", seed=-1)
    seed = first["_hal0"]["images"][0]["seed"]
    assert 0 <= seed < 2**53
    assert draw(client, response_format="b64_json", seed=seed)["data"] == first["data"]


def test_n_above_the_batch_limit_returns_all_pictures_with_their_seeds(client: FlaskClient) -> None:
    body = draw(client, n=6, seed=10, response_format="b64_json")
    images = [(image["seed"], image["index"], image["batch"]) for image in body["_hal0"]["images"]]
    assert images == [(10, 0, 4), (10, 1, 4), (10, 2, 4), (10, 3, 4), (14, 0, 2), (14, 1, 2)]
    assert len({datum["b64_json"] for datum in body["data"]}) == 6


@pytest.mark.parametrize("n", [2, "2", " 2 ", 2.0])
def test_n_may_be_numeric_text(client: FlaskClient, n: Any) -> None:
    assert len(draw(client, n=n)["data"]) == 2


# --- response_format and output_format -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "ChatGPT-Image-latest"}, "b64_json"),
        ({"model": "gpt-image-1", "response_format": "url"}, "url"),
        ({"background": "auto"}, "b64_json"),
        ({"moderation": "low"}, "b64_json"),
        ({"output_format": "png"}, "b64_json"),
        ({"output_format": "png", "response_format": "url"}, "url"),
        ({"response_format": None}, "url"),
        ({"response_format": ""}, "url"),
        ({"quality": "hd", "style": "vivid", "user": "x"}, "url"),
    ],
)
def test_the_default_response_format_depends_on_the_dialect(
    client: FlaskClient, fields: dict[str, Any], key: str
) -> None:
    assert list(draw(client, **fields)["data"][0]) == [key]


def test_the_default_response_format_is_a_setting(make_app: MakeApp) -> None:
    client = make_app(default_response_format="b64_json").test_client()
    assert list(draw(client)["data"][0]) == ["b64_json"]


@pytest.mark.parametrize(
    ("requested", "returned"), [("png", "PNG"), ("jpeg", "JPEG"), ("jpg", "JPEG"), ("webp", "WEBP")]
)
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_the_output_format_is_honoured(
    client: FlaskClient, requested: str, returned: str, response_format: str
) -> None:
    body = draw(client, output_format=requested, response_format=response_format, output_compression=40)
    image = picture(client, body["data"][0])
    assert (image.format, image.size) == (returned, (256, 256))
    assert body["output_format"] == returned.lower()
    ignored = [note["field"] for note in body["_hal0"]["ignored"]]
    assert ignored == (["output_compression"] if returned == "PNG" else [])


def test_a_setting_makes_urls_relative_or_data_urls(make_app: MakeApp) -> None:
    client = make_app(url_style="relative").test_client()
    assert draw(client)["data"][0]["url"].startswith("/api/images/cache/")
    client = make_app(url_style="data").test_client()
    url = draw(client, output_format="jpeg", response_format="url")["data"][0]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(url.partition(",")[2]).startswith(b"\xff\xd8")


# --- the fields of the dialects --------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        {"steps": 3, "cfg": 4.5, "sampler": "euler_ancestral", "schedule": "karras"},
        {"num_inference_steps": 3, "guidance_scale": 4.5, "sampler": "euler_a", "scheduler": "karras"},
        {"sample_steps": 3, "cfg_scale": 4.5, "sample_method": "euler_a", "schedule_method": "karras"},
        {"extra_body": {"steps": 3, "cfg": 4.5, "sampler": "euler_a", "schedule": "karras"}},
        {
            "steps": 3,
            "extra_body": {"sampling_steps": 3, "cfg_scale": 4.5, "sampler": "euler_a", "schedule": "KARRAS"},
        },
    ],
)
def test_field_names_of_all_dialects_are_equivalent(client: FlaskClient, spelling: dict[str, Any]) -> None:
    body = draw(client, model="sd-1.5", seed=1, response_format="b64_json", **spelling)
    meta = body["_hal0"]["meta"]
    assert (meta["steps"], meta["cfg"]) == (3, 4.5)
    assert (meta["sampler"], meta["schedule"]) == ("euler_ancestral", "karras")


def test_of_two_aliases_the_first_wins_and_the_other_is_listed(client: FlaskClient) -> None:
    body = draw(
        client, model="sd-1.5", steps=2, sample_steps=9, extra_body={"steps": 7, "seed": 3, "prompt": "x"}
    )
    assert body["_hal0"]["meta"]["steps"] == 2
    assert body["_hal0"]["meta"]["seed"] == 3
    listed = {note["field"]: note["asked"] for note in body["_hal0"]["ignored"]}
    assert listed == {"sample_steps": 9, "steps": 7, "extra_body.prompt": "x"}


def test_a_nested_extra_body_is_listed_as_ignored(client: FlaskClient) -> None:
    body = draw(client, extra_body={"extra_body": {"seed": 9}})
    assert [note["field"] for note in body["_hal0"]["ignored"]] == ["extra_body.extra_body"]


def test_the_list_of_ignored_fields_is_limited(client: FlaskClient) -> None:
    body = draw(client, **{"x" * 300 + str(index): index for index in range(5000)})
    ignored = body["_hal0"]["ignored"]
    assert (len(ignored), ignored[-1]["asked"]) == (101, 4900)
    assert max(len(note["field"]) for note in ignored) <= 200


def test_a_guidance_scale_of_zero_means_cfg_1(client: FlaskClient) -> None:
    body = draw(client, guidance_scale=0)
    assert body["_hal0"]["meta"]["cfg"] == 1.0
    assert [note["field"] for note in body["_hal0"]["adjusted"]] == ["guidance_scale"]


def test_ignored_fields_are_listed_with_a_reason(client: FlaskClient) -> None:
    fields = {"quality": "vast", "input_fidelity": "high", "style": "vivid", "user": "u", "moderation": "low", "wings": 2, "negative_prompt": "fog",
             "partial_images": 2, "stream": False, "strength": 0.5, "stream_options": {"include_usage": True}}  # fmt: skip
    body = draw(client, **fields)
    listed = {note["field"] for note in body["_hal0"]["ignored"]}
    assert listed == set(fields) - {"stream"}
    assert all(note["why"] for note in body["_hal0"]["ignored"])


def test_a_size_is_rounded_to_the_models_multiple_and_listed(client: FlaskClient) -> None:
    body = draw(client, size="300x301")
    assert body["size"] == "304x304"
    assert body["_hal0"]["adjusted"][0]["done"] == "304x304"


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-3", None])
@pytest.mark.parametrize(
    ("size", "drawn"), [("1536x1024", (1024, 680)), ("2048x1152", (1024, 576)), ("200x500", (256, 640))]
)
def test_the_picture_of_a_fitted_size_has_the_size_that_is_reported(
    client: FlaskClient, model: str | None, size: str, drawn: tuple[int, int]
) -> None:
    body = draw(client, model=model, size=size)
    assert picture(client, body["data"][0]).size == drawn
    assert body["size"] == body["_hal0"]["meta"]["size"] == f"{drawn[0]}x{drawn[1]}"
    (note,) = body["_hal0"]["adjusted"]
    assert (note["field"], note["asked"], note["done"]) == ("size", size, body["size"])


@pytest.mark.parametrize("size", ["auto", "AUTO", "", None])
def test_without_size_the_models_default_is_used(client: FlaskClient, size: Any) -> None:
    assert draw(client, size=size)["size"] == "512x512"


def test_without_size_the_configured_default_is_used_if_the_model_supports_it(make_app: MakeApp) -> None:
    client = make_app(
        images__default_size="1536x768", images__default_model="sd-1.5-pruned-emaonly"
    ).test_client()
    assert draw(client, size=None)["size"] == "512x512"
    assert draw(client, size=None, model="flux-schnell")["size"] == "1536x768"
    assert draw(client)["_hal0"]["model"] == "sd-1.5-pruned-emaonly"


def test_unusual_values_in_unknown_fields_do_not_break_the_response(client: FlaskClient) -> None:
    text = '{"prompt":"a","size":"256x256","big":1e999,"deep":{"a":[1]},"half":"\\ud800","long":"%s"}' % (
        "x" * 9999
    )
    response = client.post(PATH, data=text, content_type="application/json")
    assert response.status_code == 200
    json.loads(response.text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert len(response.text) < 6000


# --- refused requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "  \n\t", None])
def test_a_missing_prompt_is_422(client: FlaskClient, prompt: Any) -> None:
    refuse(client, 422, "image.prompt_required", "prompt", prompt=prompt)


@pytest.mark.parametrize("model", ["nope", "SD5", "gpt-4"])
def test_an_unknown_model_is_404_and_lists_the_known_ones(client: FlaskClient, model: str) -> None:
    error = refuse(client, 404, "image.model_not_curated", "model", model=model)
    assert "flux-schnell" in error["details"]["models"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5), ("prompt", ["a"]), ("prompt", "x" * 32_001), ("prompt", "\ud800"),
        ("model", 5), ("n", 0), ("n", -1), ("n", 11), ("n", "x"), ("n", 1.5), ("n", True), ("n", []),
        ("response_format", "png"), ("response_format", 1), ("output_format", "gif"), ("output_format", "svg"),
        ("output_compression", 101), ("output_compression", "high"), ("partial_images", 4), ("stream", "yes"),
        ("seed", -2), ("seed", 2**64), ("seed", "five"), ("seed", 1.5), ("steps", 0), ("steps", "two"),
        ("steps", True), ("cfg", 101), ("cfg", "high"), ("sampler", "nope"), ("sampler", 3), ("negative_prompt", 3),
        ("extra_body", "steps=3"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_400_and_param_names_the_field(
    client: FlaskClient, field: str, value: Any
) -> None:
    refuse(client, 400, "request.invalid_value", field, **{field: value})


@pytest.mark.parametrize(
    "size", ["banana", "512", "512x", "10x10", "4096x4096", "-512x512", "512x512x3", 512, "1e3x5"]
)
def test_an_invalid_or_unsupported_size_is_400(client: FlaskClient, size: Any) -> None:
    refuse(client, 400, "image.size_not_allowed", "size", size=size)


def test_an_infinite_number_is_returned_as_text_in_the_error(client: FlaskClient) -> None:
    response = client.post(PATH, data='{"prompt": "a", "cfg": 1e999}', content_type="application/json")
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, "cfg")
    json.loads(response.text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_the_case_of_a_format_does_not_matter(client: FlaskClient) -> None:
    body = draw(client, output_format="JPG", response_format="B64_JSON")
    assert picture(client, body["data"][0]).format == "JPEG"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "n": 1, "n": 2}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"n": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_body_that_is_not_a_json_object_is_400(client: FlaskClient, body: bytes) -> None:
    response = client.post(PATH, data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.get_json()["error"]["code"] == "request.malformed"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_content_type_other_than_json_is_415(client: FlaskClient, kind: str) -> None:
    response = client.post(PATH, data=json.dumps(SMALL), content_type=kind)
    assert (response.status_code, response.get_json()["error"]["code"]) == (415, "request.not_json")


def test_a_body_that_is_too_large_is_413(make_app: MakeApp) -> None:
    response = make_app(max_request_mb=0.01).test_client().post(PATH, json={"prompt": "x" * 20_000})
    assert (response.status_code, response.get_json()["error"]["code"]) == (413, "request.too_large")


def test_image_requests_can_be_disabled(make_app: MakeApp) -> None:
    response = make_app(images__enabled=False).test_client().post(PATH, json=SMALL)
    assert response.get_json()["error"]["code"] == "image.disabled"


# --- engine errors ---------------------------------------------------------------------------------


def test_an_unreachable_engine_is_503_with_retry_after(make_app: MakeApp) -> None:
    client = make_app(engine__url="http://127.0.0.1:9").test_client()
    response = client.post(PATH, json=SMALL)
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "engine.unreachable")
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["x-should-retry"] == "true"


def test_request_errors_are_reported_before_the_engine_is_contacted(make_app: MakeApp) -> None:
    client = make_app(engine__url="http://127.0.0.1:9").test_client()
    refuse(client, 404, "image.model_not_curated", "model", model="nope")
    refuse(client, 400, "image.size_not_allowed", "size", size="9x9")


def test_missing_files_are_reported_with_folder_and_node(make_app: MakeApp, tmp_path: Any) -> None:
    text = (
        (SMALL_CATALOGUE / "catalogue.yaml")
        .read_text()
        .replace("name: ae.safetensors", "name: absent.safetensors")
    )
    (tmp_path / "catalogue.yaml").write_text(text)
    client = make_app(catalogue=str(tmp_path / "catalogue.yaml")).test_client()
    error = refuse(client, 503, "model.files_missing", None, model="flux-schnell")
    (file,) = error["details"]["files"]
    assert (file["name"], file["folder"], file["node"]) == ("absent.safetensors", "models/vae", "vae")


def test_a_node_that_the_sketch_engine_cannot_run_is_named_without_retry_and_without_traceback(
    make_app: MakeApp, tmp_path: Any
) -> None:
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text().replace("max: 1024x1024", "max: 16384x16384")
    (tmp_path / "catalogue.yaml").write_text(text)
    response = make_app(catalogue=str(tmp_path / "catalogue.yaml")).test_client().post(
        PATH, json={"prompt": "a", "size": "16384x16384"}
    )  # fmt: skip
    error = response.get_json()["error"]
    assert (response.status_code, error["code"]) == (503, "engine.sketch_cannot_run")
    assert (
        "sketch engine, which draws without models, cannot run this node (SamplerCustom)" in error["message"]
    )
    assert response.headers["x-should-retry"] == "false"
    assert error["details"]["class_type"] == "SamplerCustom"
    assert "Traceback" not in response.text
    assert str(ROOT) not in response.text


def test_requests_above_max_waiting_are_429(make_app: MakeApp) -> None:
    app = make_app(max_waiting=1)
    with app.extensions["easel"].generator.admission.of(""):
        response = app.test_client().post(PATH, json=SMALL)
    assert (response.status_code, response.get_json()["error"]["code"]) == (429, "queue.full")
    assert int(response.headers["Retry-After"]) > 0
    assert app.test_client().post(PATH, json=SMALL).status_code == 200


# --- metadata in pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_pictures_contain_only_the_metadata_that_the_setting_allows(
    make_app: MakeApp, output_format: str
) -> None:
    def data(policy: str) -> bytes:
        client = make_app(images__metadata=policy).test_client()
        body = draw(
            client, prompt="a secret hat", output_format=output_format, response_format="b64_json", seed=9
        )
        return base64.b64decode(body["data"][0]["b64_json"])

    assert b"secret hat" not in data("none")
    assert "Seed: 9" in str(Image.open(io.BytesIO(data("parameters"))).info) or b"Seed: 9" in data(
        "parameters"
    ).replace(b"\0", b"")
    if output_format == "png":
        assert (
            json.loads(Image.open(io.BytesIO(data("workflow"))).info["prompt"])["positive"]["inputs"]["text"]
            == "a secret hat"
        )
