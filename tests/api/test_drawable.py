"""What clients see of the catalogue check: models that cannot be drawn, and workflows of users' own graphs."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from PIL import Image

from compiler import Sources
from sketch import SketchProcess
from tests.api.sse import events_of
from tests.api.test_edits import file, photo
from tests.compiler.catalogues import as_template, exported, with_workflow, write_sources
from tests.conftest import NODES, ROOT, MakeApp
from tests.waiting import wait_until

GENERATIONS, EDITS, VARIATIONS = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"

MakeClient = Callable[[Sources], FlaskClient]


@pytest.fixture
def client_of(make_app: MakeApp, tmp_path: Path) -> MakeClient:
    """A client of an application with this catalogue."""
    return lambda sources: make_app(**write_sources(sources, tmp_path)).test_client()


def drawn(response: Any) -> tuple[list[Image.Image], dict[str, Any]]:
    """The pictures of a response, and its `_hal0`."""
    assert response.status_code == 200, response.text[:800]
    body = response.get_json()
    schema = json.loads((ROOT / "schemas/image_response.schema.json").read_text())
    Draft202012Validator(schema).validate(body)
    pictures = [Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) for entry in body["data"]]
    return pictures, body["_hal0"]


def generate(client: FlaskClient, **fields: Any) -> Any:
    values = {"prompt": "a cat", "model": "mine", "size": "256x256", "response_format": "b64_json", **fields}
    return client.post(GENERATIONS, json=values)


def redraw(client: FlaskClient, path: str, image: bytes, **fields: Any) -> Any:
    values = {"model": "mine", "image": file(image), "response_format": "b64_json", **fields}
    return client.post(path, data=values, content_type="multipart/form-data")


# --- a model that cannot be drawn -------------------------------------------------------------------


def test_a_request_for_it_gets_a_503_with_every_fault_and_the_other_models_serve(
    client_of: MakeClient,
) -> None:
    client = client_of(with_workflow(exported(n3_seed=5, n5_width=512)))
    response = generate(client)
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    error = response.get_json()["error"]
    assert (error["code"], error["param"]) == ("model.not_drawable", "model")
    assert error["details"]["faults"] == [
        "mine.json.j2: `seed` has no effect; node '3' (KSampler), input 'seed': write {{ seed }}",
        "mine.json.j2: `width` has no effect; node '5' (EmptyLatentImage), input 'width': write {{ width }}",
    ]
    assert error["details"]["faults"][0] in error["message"]
    pictures, _ = drawn(generate(client, model="sd-1.5"))
    assert pictures[0].size == (256, 256)


def test_models_ready_status_and_the_shell_name_it(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(**write_sources(with_workflow(exported(n3_seed=5)), tmp_path))
    client = app.test_client()
    fault = "mine.json.j2: `seed` has no effect; node '3' (KSampler), input 'seed': write {{ seed }}"
    entry = client.get("/v1/models/mine").get_json()
    assert (entry["tasks"], entry["not_drawable"]) == ([], {"generate": [fault]})
    assert client.get("/v1/models/sd-1.5").get_json()["not_drawable"] == {}
    wait_until(lambda: client.get("/ready").status_code == 200)
    ready = client.get("/ready")
    assert ready.get_json()["catalogue"]["not_drawable"] == [f"mine (generate): {fault}"]
    models = wait_until(lambda: client.get("/api/comfyui/status").get_json()["models"])
    states = {model["id"]: model for model in models}
    assert states["mine"] == {
        "id": "mine", "ready": False, "code": "model.not_drawable", "missing": [], "not_drawable": ["generate"],
        "files": [], "lacks": [], "needs_comfyui": None, "fits_gpu": None,
    }  # fmt: skip
    assert states["sdxl-turbo"]["ready"]
    result = app.test_cli_runner().invoke(args=["check-catalogue"])
    assert result.exit_code == 1
    assert f"      - {fault}\n" in result.stdout
    assert re.search(r"^1 of \d+ models cannot draw everything: mine\.$", result.stdout, re.MULTILINE)
    valid = result.stdout[result.stdout.index("\nvalid (") :]
    assert re.search(r"^  sdxl-turbo +SDXL +6.9 GB +8 GB VRAM +Stability AI", valid, re.MULTILINE)


def test_ready_hides_the_faults_if_keys_are_configured(make_app: MakeApp, tmp_path: Path) -> None:
    client = make_app(
        api_keys=("k",), **write_sources(with_workflow(exported(n3_seed=5)), tmp_path)
    ).test_client()
    assert client.get("/ready").get_json()["catalogue"]["not_drawable"] == ["mine (generate)"]


def test_a_model_that_fails_for_one_task_draws_the_others(client_of: MakeClient) -> None:
    client = client_of(with_workflow(exported(), tasks=["generate", "edit"]))
    assert drawn(generate(client))[0]
    error = redraw(client, EDITS, photo(), prompt="a hat").get_json()["error"]
    assert (error["code"], error["details"]["tasks"]) == ("model.not_drawable", ["generate"])


# --- several outputs --------------------------------------------------------------------------------

PREVIEW = {"10": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}}
SCALED = {
    "10": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["8", 0], "upscale_method": "area", "scale_by": 0.25},
    },
    "11": {"class_type": "SaveImage", "inputs": {"filename_prefix": "{{ prefix }}", "images": ["10", 0]}},
}


@pytest.mark.parametrize(
    ("nodes", "fields", "size"),
    [(PREVIEW, {}, (256, 256)), (PREVIEW, {"output": 10}, (256, 256)), (SCALED, {"output": 9}, (256, 256)), (SCALED, {"output": "11"}, (64, 64))],
)  # fmt: skip
def test_the_pictures_of_the_answers_node_are_sent_and_no_others(
    client_of: MakeClient, nodes: Any, fields: Any, size: tuple[int, int]
) -> None:
    client = client_of(with_workflow(exported(add=nodes), model={"limits": {"batch": 2}}, **fields))
    pictures, info = drawn(generate(client, n=2))
    assert [picture.size for picture in pictures] == [size, size]
    assert info["meta"]["size"] == f"{size[0]}x{size[1]}"
    notes = [(note["field"], note["asked"], note["done"]) for note in info["adjusted"]]
    assert notes == ([("size", "256x256", "64x64")] if size == (64, 64) else [])


def test_a_node_that_makes_more_pictures_than_asked_for_is_no_error_and_is_listed(
    client_of: MakeClient,
) -> None:
    twice = {"10": {"class_type": "RepeatImageBatch", "inputs": {"image": ["8", 0], "amount": 2}}}
    client = client_of(with_workflow(exported(add=twice, n9_images=["10", 0])))
    pictures, info = drawn(generate(client))
    assert len(pictures) == 1
    (note,) = info["adjusted"]
    assert (note["field"], note["asked"], note["done"]) == ("n", 2, 1)
    assert "node '9' of the workflow makes more pictures" in note["why"]


# --- graphs that only change an image ---------------------------------------------------------------


def scaler(width: int, height: int) -> str:
    """Enlarges an image; a graph without weights, prompt, seed and crop."""
    return as_template(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": "{{ image }}"}},
            "2": {
                "class_type": "ImageScale",
                "inputs": {
                    "image": ["1", 0],
                    "upscale_method": "lanczos",
                    "width": f"{{{{ width * {width} }}}}",
                    "height": f"{{{{ height * {height} }}}}",
                    "crop": "disabled",
                },
            },
            "9": {
                "class_type": "SaveImage",
                "inputs": {"filename_prefix": "{{ prefix }}", "images": ["2", 0]},
            },
        }
    )


def test_a_graph_without_prompt_and_seed_draws_a_variation_and_reports_no_seed(client_of: MakeClient) -> None:
    client = client_of(with_workflow(scaler(2, 2), tasks=["vary"], model={"files": {}}))
    (picture,), info = drawn(redraw(client, VARIATIONS, photo(256, 264), seed="7"))
    assert picture.size == (512, 528)
    assert (info["meta"]["seed"], info["images"][0]["seed"]) == (None, None)
    (note,) = [note for note in info["ignored"] if note["field"] == "seed"]
    assert "has no seed" in note["why"]
    _, info = drawn(redraw(client, VARIATIONS, photo()))
    assert info["ignored"] == []
    refused = redraw(client, VARIATIONS, photo(), n="2")
    assert (refused.status_code, refused.get_json()["error"]["param"]) == (400, "n")
    assert "has no seed" in refused.get_json()["error"]["message"]


@pytest.mark.parametrize("prompt", [None, "", "  "])
def test_an_edit_without_a_prompt_is_a_variation_if_the_model_makes_these_but_no_edits(
    client_of: MakeClient, prompt: str | None
) -> None:
    client = client_of(with_workflow(scaler(2, 2), tasks=["vary"], model={"files": {}}))
    fields = {} if prompt is None else {"prompt": prompt}
    (picture,), info = drawn(redraw(client, EDITS, photo(256, 264), **fields))
    assert picture.size == (512, 528)
    assert info["meta"]["task"] == "vary"
    assert info["ignored"] == []


def test_a_variation_on_the_path_of_edits_answers_as_an_edit(client_of: MakeClient) -> None:
    client = client_of(with_workflow(scaler(2, 2), tasks=["vary"], model={"files": {}}))
    form = {"model": "mine", "image": (io.BytesIO(photo()), "a.png")}
    assert list(client.post(EDITS, data=form).get_json()["data"][0]) == ["b64_json"]
    form = {"model": "mine", "image": (io.BytesIO(photo()), "a.png"), "stream": "true", "partial_images": "0"}
    events = events_of(client.post(EDITS, data=form).text)
    assert events[-1].name == "image_edit.completed"


def test_a_task_that_the_model_does_not_support_is_refused_with_the_path_to_use(
    client_of: MakeClient,
) -> None:
    client = client_of(with_workflow(scaler(2, 2), tasks=["vary"], model={"files": {}}))
    mask = io.BytesIO()
    Image.new("L", (256, 256)).save(mask, "PNG")
    for path, prefix in (("/v1/images/", "/v1/images/"), ("/v1-openai/images/", "/v1-openai/images/")):
        responses = [
            redraw(client, f"{path}edits", photo(), prompt="a cat"),
            client.post(f"{path}edits", data={"model": "mine", "image": (io.BytesIO(photo()), "a.png"), "mask": (io.BytesIO(mask.getvalue()), "m.png")}),
            client.post(f"{path}generations", json={"model": "mine", "prompt": "a cat"}),
            client.post(f"{path}generations", json={"model": "mine"}),
        ]  # fmt: skip
        for response in responses:
            error = response.get_json()["error"]
            assert (response.status_code, error["param"]) == (400, "model")
            remedy = f"only vary: send an image without a prompt or a mask to {prefix}variations."
            assert error["message"].endswith(remedy)


def test_an_edit_without_a_prompt_for_a_model_that_edits_names_the_path_of_variations(
    client_of: MakeClient,
) -> None:
    client = client_of(with_workflow(scaler(2, 2), tasks=["vary"], model={"files": {}}))
    form = {"model": "sd-1.5", "image": (io.BytesIO(photo()), "a.png")}
    response = client.post(EDITS, data=form)
    assert response.status_code == 422
    assert "/v1/images/variations" in response.get_json()["error"]["message"]


@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (2, 3)])
def test_a_picture_is_cropped_to_the_size_of_the_image_if_the_template_does_not(
    client_of: MakeClient, scale: tuple[int, int]
) -> None:
    client = client_of(with_workflow(scaler(*scale), tasks=["vary"], model={"files": {}}))
    image = Image.new("RGB", (500, 333), "red")
    image.paste("blue", (490, 0, 500, 333))
    data = io.BytesIO()
    image.save(data, "PNG")
    (picture,), _ = drawn(redraw(client, VARIATIONS, data.getvalue()))
    assert picture.size == (500 * scale[0], 333 * scale[1])
    assert picture.convert("RGB").getpixel((picture.width - 2, picture.height - 2)) == (0, 0, 255)


def test_metadata_of_the_workflow_survives_the_crop(make_app: MakeApp, tmp_path: Path) -> None:
    sources = with_workflow(scaler(1, 1), tasks=["vary"], model={"files": {}})
    client = make_app(images__metadata="workflow", **write_sources(sources, tmp_path)).test_client()
    (picture,), _ = drawn(redraw(client, VARIATIONS, photo(300, 301)))
    assert picture.size == (300, 301)
    assert json.loads(picture.info["prompt"])["2"]["class_type"] == "ImageScale"  # type: ignore[attr-defined]


def test_the_sketch_engine_has_the_files_that_templates_name_themselves(
    tmp_path: Path, make_app: MakeApp
) -> None:
    lora = {"10": {"class_type": "LoraLoader", "inputs": {"lora_name": "style.safetensors", "strength_model": 1, "strength_clip": 1, "model": ["4", 0], "clip": ["4", 1]}}}  # fmt: skip
    settings = write_sources(with_workflow(exported(add=lora, n3_model=["10", 0])), tmp_path)
    files = make_app(**settings).extensions["easel"].catalogue().files
    with SketchProcess(nodes=NODES, files=files) as sketch:
        assert drawn(generate(make_app(engine__url=sketch.url, **settings).test_client()))[0]


def test_the_shell_draws_a_variation_of_an_image_if_the_prompt_is_empty(
    make_app: MakeApp, tmp_path: Path
) -> None:
    sources = with_workflow(scaler(2, 2), tasks=["vary"], model={"files": {}})
    run = make_app(**write_sources(sources, tmp_path)).test_cli_runner()
    (tmp_path / "in.png").write_bytes(photo(256, 256))
    target = tmp_path / "out.png"
    words = ["generate", "", "--model", "mine", "--image", str(tmp_path / "in.png"), "-o", str(target)]
    result = run.invoke(args=words)
    assert result.exit_code == 0, result.output
    assert f"{target}  512x512  mine  no seed" in result.stdout
    with Image.open(target) as picture:
        assert picture.size == (512, 512)
    result = run.invoke(
        args=["compile-workflow", "mine", "", "--image", str(tmp_path / "in.png"), "--as", "explain"]
    )
    assert "no seed, 1 picture(s)" in result.stdout
