"""What GET /v1/models/{id} says that a request may set, held to what the compiler does with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from api.dialect import Endpoint
from api.image_requests import ImageFields
from api.model_inputs import inputs_of
from app import create_app
from compiler import Catalogue, Compiled, Model, Task
from errors import EaselError
from schemas import read_yaml
from settings import SETTINGS_BY_NAME, Settings
from sketch import SketchProcess
from tests.api.test_edits import data_url, mask, photo
from tests.conftest import NODES, ROOT, MakeApp
from tests.waiting import wait_until

IDS = list(read_yaml((ROOT / "catalogue.yaml").read_text("utf-8"), repeated_sections=True)["models"])
IMAGE = data_url(photo(512, 512))
"""Every model takes this size as it is"""
MASK = data_url(mask(size=(512, 512)))
_TRIED: set[str] = set()
"""What was tried with another model: many differ only in their files and defaults"""


def is_new(*what: Any) -> bool:
    """Whether this was not tried yet in this process."""
    key = json.dumps(what, sort_keys=True)
    if key in _TRIED:
        return False
    _TRIED.add(key)
    return True


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """One application for all models; no request reaches its engine."""
    values = {name: setting.default for name, setting in SETTINGS_BY_NAME.items()}
    values |= {"engine.url": "http://127.0.0.1:9", "state_dir": str(tmp_path_factory.mktemp("state"))}
    app = create_app(Settings(values, base=ROOT))
    app.extensions["easel"].watch_catalogue()  # no request has to look at its files
    yield app
    app.extensions["easel"].engine_selector.close()


class Requests:
    """Requests to one model for one task."""

    def __init__(self, app: Flask, model: Model, task: Task) -> None:
        self._app, self._model, self._task = app, model, task
        self.services = app.extensions["easel"].services
        count = self.catalogue.image_counts(model).get(task)
        self._images = [IMAGE] * count.min if count else []

    @property
    def catalogue(self) -> Catalogue:
        return self.services.catalogue()

    def body(self, **fields: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model.id}
        if self._task != "vary":
            body["prompt"] = "a hat"
        if self._images:
            body["image"] = self._images
        if self._task == "inpaint" and "outpaint" not in fields:
            body["mask"] = MASK
        return {**body, **fields}

    def compile(self, **fields: Any) -> tuple[Compiled, dict[str, Any]]:
        """What is drawn, and each field that was adjusted or ignored, with why. Raises what refuses the request."""
        endpoint = Endpoint("edit" if self._task == "inpaint" else self._task)
        with self._app.test_request_context("/"):
            parsed, compiled = ImageFields.read(self.body(**fields), self.services, endpoint).compile()
        assert compiled.plan.task == self._task
        notes = (*parsed.adjusted, *parsed.ignored, *compiled.plan.adjusted, *compiled.plan.ignored)
        return compiled, {note.field: note for note in notes}


def values_to_try(entry: dict[str, Any]) -> list[Any]:
    """The default, the smallest and the largest value, and the first and the last choice."""
    kind = entry["type"]
    if kind == "image":
        return [IMAGE] if entry["name"] != "image" else [[IMAGE] * entry["min"], [IMAGE] * entry["max"]]
    if kind in ("mask", "outpaint"):
        return [MASK] if kind == "mask" else [entry["min"] + 63]
    if kind == "loras":
        return [[{"name": each["id"], "strength": each["strength"]}] for each in entry["loras"]] + [
            [{"name": entry["choices"][0], "strength": entry[end]}] for end in ("min", "max")
        ]
    if kind == "choice":
        return [entry["choices"][0], entry["choices"][-1]]
    if kind == "string":
        return ["a" * 100]
    if kind == "size":
        return [entry[name] for name in ("default", "min") if entry[name]] + entry["choices"]
    return [entry[name] for name in ("default", "min", "max") if entry[name] is not None]


def enabling(entry: dict[str, Any], entries: dict[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """Other fields with which an input has its effect."""
    fields: dict[str, Any] = {}
    for name, value in entry.get("unused_when", {}).items():
        if value is None:
            fields[name] = IMAGE
        elif name in entries:
            other = entries[name]
            fields[name] = next(
                each for each in (*(other["choices"] or ()), other["min"], other["max"]) if each != value
            )
    return fields


@pytest.mark.parametrize("name", IDS)
def test_a_request_may_set_each_listed_input_to_its_default_and_its_limits(app: Flask, name: str) -> None:
    catalogue = app.extensions["easel"].services.catalogue()
    model = catalogue.models[name]
    for task, inputs in inputs_of(model, catalogue, {}).items():
        requests, entries = Requests(app, model, task), {entry["name"]: entry for entry in inputs}
        assert len(entries) == len(inputs)
        limits = [{name: value for name, value in entry.items() if name != "default"} for entry in inputs]
        tries_all = is_new("limits", task, model.workflows[task], limits)
        for entry in inputs:
            others = enabling(entry, entries, catalogue)
            for value in values_to_try(entry)[: None if tries_all else 1]:
                fields = {**others, entry["name"]: value}
                for needed in _needed(entry, value):
                    fields[needed] = entries[needed]["default"]
                compiled, notes = requests.compile(**fields)
                if entry["name"] in ("strength", "steps", "size"):
                    continue  # adjusted to what can be drawn with the other values, and listed
                assert entry["name"] not in notes, (task, value, notes)
                planned = compiled.plan.values.get(entry["name"])
                if entry["name"] in catalogue.workflows[compiled.plan.workflow].inputs:
                    assert planned is not None
                    assert planned.origin == "request"


def _needed(entry: dict[str, Any], value: Any) -> list[str]:
    if entry["type"] != "loras":
        return []
    return next(each["needs"] for each in entry["loras"] if each["id"] == value[0]["name"])


@pytest.mark.parametrize("name", IDS)
def test_a_request_that_sets_an_input_which_is_not_listed_is_told_so(app: Flask, name: str) -> None:
    catalogue = app.extensions["easel"].services.catalogue()
    model = catalogue.models[name]
    for task, inputs in inputs_of(model, catalogue, {}).items():
        requests, listed = Requests(app, model, task), {entry["name"] for entry in inputs}
        if not is_new("listed", task, model.workflows[task], sorted(listed)):
            continue
        for field, value in every_field(catalogue).items():
            if field in listed:
                continue
            told = told_about(requests, **{field: value})
            # What only an image changes may be refused for the image that the request lacks.
            assert told & {field, "image"}, (task, field, told)


def told_about(requests: Requests, **fields: Any) -> set[str]:
    """The fields that an answer lists as adjusted or ignored, or the one because of which it is refused."""
    try:
        return set(requests.compile(**fields)[1])
    except EaselError as error:
        return {str(error.param)}


def every_field(catalogue: Catalogue) -> dict[str, Any]:
    """Each input of any workflow, and each other field that changes a picture -> a value that is not the usual one."""
    fields: dict[str, Any] = {
        "lora": "lcm-sdxl",
        "n": 2,
        "seed": 5,
        "quality": "max",
        "input_fidelity": "high",
    }
    for workflow in catalogue.workflows.values():
        for name, rule in workflow.inputs.items():
            if rule.is_image:
                fields[name] = IMAGE
            elif "enum" in rule.schema:
                fields[name] = rule.schema["enum"][-1]
            elif rule.schema["type"] == "string":
                fields[name] = "a hat"
            elif rule.schema["minimum"] != rule.schema["maximum"]:
                fields[name] = rule.schema["minimum"] + 3
    return fields


def test_the_inputs_of_a_model_follow_its_task(client: FlaskClient) -> None:
    inputs = client.get("/v1/models/sdxl-turbo").get_json()["inputs"]
    by_name = {task: {entry["name"]: entry for entry in entries} for task, entries in inputs.items()}
    assert set(by_name) == {"generate", "edit", "inpaint", "vary"}
    assert "strength" not in by_name["generate"]
    assert "prompt" not in by_name["vary"]
    assert (by_name["generate"]["steps"]["default"], by_name["generate"]["steps"]["max"]) == (1, 10)
    assert (by_name["edit"]["steps"]["default"], by_name["edit"]["steps"]["max"]) == (2, 4)
    assert by_name["edit"]["size"]["default"] is None
    assert by_name["generate"]["negative_prompt"]["unused_when"] == {"cfg": 1.0}


@pytest.mark.parametrize("name", ["sdxl-turbo", "sdxl-control", "qwen-image-edit-2511", "img", "birefnet"])
def test_the_answer_about_one_model_matches_its_schema(client: FlaskClient, name: str) -> None:
    schema = json.loads((ROOT / "schemas/models.schema.json").read_text())
    Draft202012Validator(schema).validate(client.get(f"/v1/models/{name}").get_json())


def test_a_value_that_can_only_be_one_is_not_listed(client: FlaskClient) -> None:
    inputs = client.get("/v1/models/flux-schnell").get_json()["inputs"]["generate"]
    names = [entry["name"] for entry in inputs]
    assert "cfg" not in names
    assert "negative_prompt" not in names


def test_the_default_size_is_that_of_the_installation(make_app: MakeApp) -> None:
    client = make_app(images__default_size="768x512").test_client()
    (size,) = [
        entry
        for entry in client.get("/v1/models/sdxl-turbo").get_json()["inputs"]["generate"]
        if entry["name"] == "size"
    ]
    assert size["default"] == "768x512"


def test_what_the_engine_cannot_do_with_a_picture_is_not_listed(make_app: MakeApp) -> None:
    files = {"checkpoints": ["sd_xl_turbo_1.0_fp16.safetensors"]}
    with SketchProcess(nodes=NODES, files=files) as engine:
        client = make_app(engine__url=engine.url).test_client()
        wait_until(lambda: client.get("/v1/models/sdxl-turbo").get_json()["stages"]["upscale"] is not None)
        inputs = client.get("/v1/models/sdxl-turbo").get_json()["inputs"]["generate"]
        assert {"upscale", "background"}.isdisjoint(entry["name"] for entry in inputs)


def test_the_files_of_a_model_say_whether_the_engine_has_them(make_app: MakeApp) -> None:
    files = {"checkpoints": ["sd_xl_turbo_1.0_fp16.safetensors"]}
    with SketchProcess(nodes=NODES, files=files) as engine:
        client = make_app(engine__url=engine.url).test_client()
        first = client.get("/v1/models/sdxl-turbo").get_json()
        assert {file["state"] for file in first["files"]} <= {"unknown", "present"}
        wait_until(lambda: client.get("/v1/models/sdxl-turbo").get_json()["engine"] is not None)
        (turbo,) = client.get("/v1/models/sdxl-turbo").get_json()["files"]
        assert (turbo["name"], turbo["state"]) == ("sd_xl_turbo_1.0_fp16.safetensors", "present")
        flux = client.get("/v1/models/flux-schnell").get_json()
        assert {file["state"] for file in flux["files"]} == {"missing"}
        assert flux["pull"] == "easel pull-model flux-schnell"
