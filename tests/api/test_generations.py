"""POST /v1/images/generations as clients use it."""

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

from tests.conftest import ROOT, MakeApp

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256"}


def draw(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.get_json()
    schema = json.loads((ROOT / "schemas/image_response.schema.json").read_text())
    Draft202012Validator(schema).validate(body)
    return dict(body)


def picture(client: FlaskClient, datum: dict[str, str]) -> Image.Image:
    if "url" in datum:
        return Image.open(io.BytesIO(client.get(datum["url"]).data))
    return Image.open(io.BytesIO(base64.b64decode(datum["b64_json"], validate=True)))


def refuse(client: FlaskClient, status: int, code: str, param: str | None, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={**SMALL, **fields})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code), answer.text
    assert answer.get_json()["error"]["param"] == param
    return dict(answer.get_json()["error"])


# --- the answer ------------------------------------------------------------------------------------


def test_a_prompt_alone_gets_an_absolute_url_of_a_png_on_the_origin_that_was_called(
    client: FlaskClient,
) -> None:
    answer = client.post(PATH, json={"prompt": "a cat"}, base_url="http://localhost:8080")
    body = answer.get_json()
    assert list(body["data"][0]) == ["url"]
    assert re.fullmatch(r"http://localhost:8080/api/images/cache/[0-9a-f-]{36}\.png", body["data"][0]["url"])
    assert picture(client, body["data"][0]).size == (512, 512)
    assert answer.headers["x-request-id"]


def test_b64_json_is_plain_base64_and_comes_without_url(client: FlaskClient) -> None:
    body = draw(client, response_format="b64_json")
    assert list(body["data"][0]) == ["b64_json"]
    assert picture(client, body["data"][0]).format == "PNG"


def test_the_answer_tells_model_workflow_checkpoint_and_every_value(client: FlaskClient) -> None:
    hal0 = draw(client, seed=5, steps=2)["_hal0"]
    assert (hal0["model"], hal0["workflow"]) == ("sdxl-turbo", "sdxl_turbo_simple")
    assert hal0["checkpoint"] == "sd_xl_turbo_1.0_fp16.safetensors"
    expected = {"template": "sdxl_turbo_simple.json.j2", "width": 256, "height": 256, "seed": 5, "steps": 2}
    assert hal0["meta"].items() >= expected.items()
    assert hal0["engine"] == "sketch"
    assert "no model ran" in hal0["notice"]


def test_a_split_models_checkpoint_is_its_diffusion_model(client: FlaskClient) -> None:
    assert draw(client, model="flux-schnell")["_hal0"]["checkpoint"] == "flux1-schnell.safetensors"


def test_the_same_seed_gives_the_same_bytes_and_none_gives_others(client: FlaskClient) -> None:
    def data(**fields: Any) -> str:
        return str(draw(client, response_format="b64_json", **fields)["data"][0]["b64_json"])

    assert data(seed=1) == data(seed=1) != data(seed=2)
    assert data() != data()


def test_a_drawn_seed_is_told_and_draws_the_same_again(client: FlaskClient) -> None:
    first = draw(client, response_format="b64_json", seed=-1)
    seed = first["_hal0"]["images"][0]["seed"]
    assert 0 <= seed < 2**53
    assert draw(client, response_format="b64_json", seed=seed)["data"] == first["data"]


def test_n_beyond_the_batch_gives_all_pictures_with_the_seed_of_each(client: FlaskClient) -> None:
    body = draw(client, n=6, seed=10, response_format="b64_json")
    told = [(image["seed"], image["index"], image["batch"]) for image in body["_hal0"]["images"]]
    assert told == [(10, 0, 4), (10, 1, 4), (10, 2, 4), (10, 3, 4), (14, 0, 2), (14, 1, 2)]
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
def test_without_a_response_format_each_dialect_gets_what_it_can_use(
    client: FlaskClient, fields: dict[str, Any], key: str
) -> None:
    assert list(draw(client, **fields)["data"][0]) == [key]


def test_the_default_response_format_is_a_setting(make_app: MakeApp) -> None:
    client = make_app(default_response_format="b64_json").test_client()
    assert list(draw(client)["data"][0]) == ["b64_json"]


@pytest.mark.parametrize(
    ("given", "made"), [("png", "PNG"), ("jpeg", "JPEG"), ("jpg", "JPEG"), ("webp", "WEBP")]
)
@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_the_output_format_is_honoured(client: FlaskClient, given: str, made: str, form: str) -> None:
    body = draw(client, output_format=given, response_format=form, output_compression=40)
    image = picture(client, body["data"][0])
    assert (image.format, image.size) == (made, (256, 256))
    assert body["output_format"] == made.lower()
    ignored = [note["field"] for note in body["_hal0"]["ignored"]]
    assert ignored == (["output_compression"] if made == "PNG" else [])


def test_a_url_may_be_relative_or_a_data_uri(make_app: MakeApp) -> None:
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
def test_every_dialects_names_mean_the_same(client: FlaskClient, spelling: dict[str, Any]) -> None:
    body = draw(client, model="sd-1.5", seed=1, response_format="b64_json", **spelling)
    meta = body["_hal0"]["meta"]
    assert (meta["steps"], meta["cfg"]) == (3, 4.5)
    assert (meta["sampler"], meta["schedule"]) == ("euler_ancestral", "karras")


def test_of_two_spellings_the_first_wins_and_the_other_is_listed(client: FlaskClient) -> None:
    body = draw(
        client, model="sd-1.5", steps=2, sample_steps=9, extra_body={"steps": 7, "seed": 3, "prompt": "x"}
    )
    assert body["_hal0"]["meta"]["steps"] == 2
    assert body["_hal0"]["meta"]["seed"] == 3
    listed = {note["field"]: note["asked"] for note in body["_hal0"]["ignored"]}
    assert listed == {"sample_steps": 9, "steps": 7, "extra_body.prompt": "x"}


def test_an_extra_body_inside_another_is_listed(client: FlaskClient) -> None:
    body = draw(client, extra_body={"extra_body": {"seed": 9}})
    assert [note["field"] for note in body["_hal0"]["ignored"]] == ["extra_body.extra_body"]


def test_thousands_of_unknown_fields_do_not_make_a_thousandfold_answer(client: FlaskClient) -> None:
    body = draw(client, **{"x" * 300 + str(index): index for index in range(5000)})
    ignored = body["_hal0"]["ignored"]
    assert (len(ignored), ignored[-1]["asked"]) == (101, 4900)
    assert max(len(note["field"]) for note in ignored) <= 200


def test_a_guidance_scale_of_zero_means_no_guidance_as_it_does_elsewhere(client: FlaskClient) -> None:
    body = draw(client, guidance_scale=0)
    assert body["_hal0"]["meta"]["cfg"] == 1.0
    assert [note["field"] for note in body["_hal0"]["adjusted"]] == ["guidance_scale"]


def test_what_is_not_honoured_is_listed_with_a_reason(client: FlaskClient) -> None:
    given = {"quality": "vast", "input_fidelity": "high", "style": "vivid", "user": "u", "moderation": "low", "wings": 2, "negative_prompt": "fog",
             "background": "transparent", "partial_images": 2, "stream": False, "strength": 0.5, "stream_options": {"include_usage": True}}  # fmt: skip
    body = draw(client, **given)
    listed = {note["field"] for note in body["_hal0"]["ignored"]}
    assert listed == set(given) - {"stream"}
    assert all(note["why"] for note in body["_hal0"]["ignored"])


def test_a_size_off_the_multiple_is_rounded_and_listed(client: FlaskClient) -> None:
    body = draw(client, size="300x301")
    assert body["size"] == "304x304"
    assert body["_hal0"]["adjusted"][0]["done"] == "304x304"


@pytest.mark.parametrize("size", ["auto", "AUTO", "", None])
def test_no_size_is_the_models_own(client: FlaskClient, size: Any) -> None:
    assert draw(client, size=size)["size"] == "512x512"


def test_no_size_is_the_installations_own_where_the_model_allows_it(make_app: MakeApp) -> None:
    client = make_app(
        images__default_size="1536x768", images__default_model="sd-1.5-pruned-emaonly"
    ).test_client()
    assert draw(client, size=None)["size"] == "512x512"
    assert draw(client, size=None, model="flux-schnell")["size"] == "1536x768"
    assert draw(client)["_hal0"]["model"] == "sd-1.5-pruned-emaonly"


def test_odd_values_in_unknown_fields_do_not_break_the_answer(client: FlaskClient) -> None:
    text = '{"prompt":"a","size":"256x256","big":1e999,"deep":{"a":[1]},"half":"\\ud800","long":"%s"}' % (
        "x" * 9999
    )
    answer = client.post(PATH, data=text, content_type="application/json")
    assert answer.status_code == 200
    json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert len(answer.text) < 6000


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "  \n\t", None])
def test_no_prompt_is_422(client: FlaskClient, prompt: Any) -> None:
    refuse(client, 422, "image.prompt_required", "prompt", prompt=prompt)


@pytest.mark.parametrize("model", ["nope", "sdxl", "gpt-4"])
def test_an_unknown_model_is_404_and_lists_those_there_are(client: FlaskClient, model: str) -> None:
    error = refuse(client, 404, "image.model_not_curated", "model", model=model)
    assert "flux-schnell" in error["details"]["models"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5), ("prompt", ["a"]), ("prompt", "x" * 32_001), ("prompt", "\ud800"),
        ("model", 5), ("n", 0), ("n", -1), ("n", 11), ("n", "x"), ("n", 1.5), ("n", True), ("n", []),
        ("response_format", "png"), ("response_format", 1), ("output_format", "gif"), ("output_format", "svg"),
        ("output_compression", 101), ("output_compression", "80"), ("partial_images", 4), ("stream", "yes"),
        ("seed", -2), ("seed", 2**64), ("seed", "5"), ("seed", 1.5), ("steps", 0), ("steps", "two"),
        ("steps", True), ("cfg", 101), ("cfg", "high"), ("sampler", "nope"), ("sampler", 3), ("negative_prompt", 3),
        ("extra_body", "steps=3"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_400_and_param_names_the_field(client: FlaskClient, field: str, value: Any) -> None:
    refuse(client, 400, "request.invalid_value", field, **{field: value})


@pytest.mark.parametrize(
    "size", ["banana", "512", "512x", "10x10", "4096x4096", "-512x512", "512x512x3", 512, "1e3x5"]
)
def test_a_size_that_is_none_or_too_much_is_400(client: FlaskClient, size: Any) -> None:
    refuse(client, 400, "image.size_not_allowed", "size", size=size)


def test_a_number_that_json_has_not_is_told_back_as_text(client: FlaskClient) -> None:
    answer = client.post(PATH, data='{"prompt": "a", "cfg": 1e999}', content_type="application/json")
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "cfg")
    json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


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
def test_a_body_that_is_no_json_object_is_400(client: FlaskClient, body: bytes) -> None:
    answer = client.post(PATH, data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["error"]["code"] == "request.malformed"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_body_that_is_not_called_json_is_415(client: FlaskClient, kind: str) -> None:
    answer = client.post(PATH, data=json.dumps(SMALL), content_type=kind)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (415, "request.not_json")


def test_a_body_that_is_too_large_is_413(make_app: MakeApp) -> None:
    answer = make_app(max_request_mb=0.01).test_client().post(PATH, json={"prompt": "x" * 20_000})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (413, "request.too_large")


def test_switched_off_is_switched_off(make_app: MakeApp) -> None:
    answer = make_app(images__enabled=False).test_client().post(PATH, json=SMALL)
    assert answer.get_json()["error"]["code"] == "image.disabled"


# --- the engine's troubles, as clients see them ----------------------------------------------------


def test_a_dead_engine_is_503_with_a_time_to_come_back(make_app: MakeApp) -> None:
    client = make_app(engine__url="http://127.0.0.1:9").test_client()
    answer = client.post(PATH, json=SMALL)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "engine.unreachable")
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["x-should-retry"] == "true"


def test_errors_of_the_request_are_told_before_a_dead_engine_is_asked(make_app: MakeApp) -> None:
    client = make_app(engine__url="http://127.0.0.1:9").test_client()
    refuse(client, 404, "image.model_not_curated", "model", model="nope")
    refuse(client, 400, "image.size_not_allowed", "size", size="9x9")


def test_missing_files_are_named_with_folder_and_address(make_app: MakeApp, tmp_path: Any) -> None:
    text = (ROOT / "catalogue.yaml").read_text().replace("name: ae.safetensors", "name: absent.safetensors")
    (tmp_path / "catalogue.yaml").write_text(text)
    client = make_app(catalogue=str(tmp_path / "catalogue.yaml")).test_client()
    error = refuse(client, 503, "model.files_missing", None, model="flux-schnell")
    (file,) = error["details"]["files"]
    assert (file["name"], file["folder"], file["node"]) == ("absent.safetensors", "models/vae", "vae")


def test_a_node_that_fails_is_500_once_with_node_and_cause_and_no_traceback(
    make_app: MakeApp, tmp_path: Any
) -> None:
    text = (ROOT / "catalogue.yaml").read_text().replace("max: 1024x1024", "max: 16384x16384")
    (tmp_path / "catalogue.yaml").write_text(text)
    answer = make_app(catalogue=str(tmp_path / "catalogue.yaml")).test_client().post(
        PATH, json={"prompt": "a", "size": "16384x16384"}
    )  # fmt: skip
    error = answer.get_json()["error"]
    assert answer.status_code == 500
    assert error["code"] in ("engine.node_failed", "engine.out_of_memory")
    assert answer.headers["x-should-retry"] == "false"
    assert error["details"]["class_type"] == "SamplerCustom"
    assert "Traceback" not in answer.text
    assert str(ROOT) not in answer.text


def test_as_many_may_wait_as_the_setting_says_and_the_next_is_429(make_app: MakeApp) -> None:
    app = make_app(max_waiting=1)
    with app.extensions["easel"].generator.waiting:
        answer = app.test_client().post(PATH, json=SMALL)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (429, "queue.full")
    assert int(answer.headers["Retry-After"]) > 0
    assert app.test_client().post(PATH, json=SMALL).status_code == 200


# --- what pictures carry inside --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_pictures_carry_nothing_unless_the_owner_says_so(make_app: MakeApp, form: str) -> None:
    def data(policy: str) -> bytes:
        client = make_app(images__metadata=policy).test_client()
        body = draw(client, prompt="a secret hat", output_format=form, response_format="b64_json", seed=9)
        return base64.b64decode(body["data"][0]["b64_json"])

    assert b"secret hat" not in data("none")
    assert "Seed: 9" in str(Image.open(io.BytesIO(data("parameters"))).info) or b"Seed: 9" in data(
        "parameters"
    ).replace(b"\0", b"")
    if form == "png":
        assert (
            json.loads(Image.open(io.BytesIO(data("workflow"))).info["prompt"])["positive"]["inputs"]["text"]
            == "a secret hat"
        )
