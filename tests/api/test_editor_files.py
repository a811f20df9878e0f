"""POST /api/graph with `as: editor`, and POST /api/graph/save: the graph of a request for ComfyUI's editor."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
import requests
from flask.testing import FlaskClient

from compiler import Catalogue
from importer.editor_file import read_editor_file
from importer.editor_graph import convert_editor_file
from sketch import SketchProcess
from tests.api.test_edits import data_url, photo
from tests.api.test_key_permissions import Installation
from tests.conftest import NODES, MakeApp

PATH, SAVE = "/api/graph", "/api/graph/save"


def editor_file(client: FlaskClient, **body: Any) -> dict[str, Any]:
    response = client.post(PATH, json={"prompt": "a cat", "model": "sd-1.5", "as": "editor", **body})
    assert response.status_code == 200, response.text[:500]
    return dict(response.get_json())


def save(client: FlaskClient, **body: Any) -> Any:
    return client.post(SAVE, json={"prompt": "a cat", "model": "sd-1.5", **body})


def new_name() -> str:
    return f"test {uuid.uuid4().hex[:12]}"


def stored(url: str, name: str) -> Any:
    """The workflow that the engine at `url` has."""
    response = requests.get(f"{url}/userdata/{quote(f'workflows/{name}', safe='')}", timeout=60)
    assert response.status_code == 200
    return response.json()


def graph_of(document: Mapping[str, Any], catalogue: Catalogue) -> list[tuple[str, dict[str, Any]]]:
    """The nodes of a file, in the order of their ids: class, and inputs with links as the place of the other node."""
    nodes = convert_editor_file(read_editor_file(document), catalogue.signatures).nodes
    return in_order({name: nodes[name] for name in sorted(nodes, key=int)})


def in_order(nodes: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    places = {name: place for place, name in enumerate(nodes)}
    return [
        (
            node["class_type"],
            {
                name: (places[value[0]], value[1]) if isinstance(value, list) else value
                for name, value in node["inputs"].items()
                if name != "filename_prefix"  # it has the id of the request
            },
        )
        for node in nodes.values()
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "sd-1.5", "steps": 7, "size": "512x768"},
        {"model": "sd-1.5", "task": "edit"},
        {"model": "sd-1.5", "task": "inpaint"},
        {"model": "sd-1.5", "task": "vary"},
        {"model": "sd-1.5", "upscale": 2, "background": "transparent"},
        {"model": "sdxl-base-1.0", "lora": "lcm-sdxl"},
        {"model": "sd-1.5", "prompt": 'a {red|blue} cat // "x"'},
    ],
)
def test_the_file_has_the_nodes_and_values_of_the_graph(
    client: FlaskClient, shipped_catalogue: Catalogue, body: dict[str, Any]
) -> None:
    body = {"prompt": "a cat", "seed": 5, **body}
    explained = client.post(PATH, json=body).get_json()
    document = editor_file(client, **body)
    found, expected = graph_of(document["editor_file"], shipped_catalogue), in_order(explained["graph"])
    for (node_class, values), (expected_class, expected_values) in zip(found, expected, strict=True):
        assert node_class == expected_class
        # The editor sends the defaults of what the graph leaves out; a note says so.
        added = set(values) - set(expected_values)
        assert {name: value for name, value in values.items() if name not in added} == expected_values
        assert all(any(repr(name) in note for note in document["notes"]) for name in added)
    for field in ("model", "task", "size", "jobs", "workflow", "adjusted", "ignored"):
        assert document[field] == explained[field]


def test_the_file_is_for_the_editor_and_named_after_model_and_task(client: FlaskClient) -> None:
    document = editor_file(client, model="sd-1.5", task="edit")
    assert document["file_name"] == "easel-sd-1.5-pruned-emaonly-edit.json"
    assert document["editor_file"]["version"] == 0.4
    (loader,) = (
        node for node in document["editor_file"]["nodes"] if node["type"] == "CheckpointLoaderSimple"
    )
    (file,) = loader["properties"]["models"]
    assert (file["name"], file["directory"]) == ("v1-5-pruned-emaonly.safetensors", "checkpoints")
    assert "graph" not in document


def test_an_image_may_be_sent_all_the_same(client: FlaskClient) -> None:
    assert editor_file(client, image=data_url(photo(512, 512)))["task"] == "edit"


def test_it_is_the_graph_of_the_first_job_and_a_note_says_so(client: FlaskClient) -> None:
    document = editor_file(client, model="flux-schnell", n=3, seed=5)
    assert document["jobs"] > 1
    assert document["notes"][0].endswith("this is the graph of the first one (seed 5).")


def test_what_the_engine_lacks_is_a_note_and_the_editor_offers_the_files(make_app: MakeApp) -> None:
    with SketchProcess(nodes=NODES, files={"checkpoints": ["other.safetensors"]}) as sketch:
        document = editor_file(make_app(engine__url=sketch.url).test_client())
    assert document["notes"][0].startswith("The engine cannot run this graph yet: ")
    assert "v1-5-pruned-emaonly.safetensors" in document["notes"][0]
    assert any(node["properties"].get("models") for node in document["editor_file"]["nodes"])


def test_without_an_engine_the_file_is_that_of_the_catalogue(make_app: MakeApp, client: FlaskClient) -> None:
    client_without = make_app(engine__url="http://127.0.0.1:9").test_client()
    document, expected = editor_file(client_without, seed=5), editor_file(client, seed=5)
    assert document["notes"][0].startswith("The engine could not be asked")
    widgets = [
        node["widgets_values"] for node in document["editor_file"]["nodes"] if node["type"] != "SaveImage"
    ]
    assert widgets == [
        node["widgets_values"] for node in expected["editor_file"]["nodes"] if node["type"] != "SaveImage"
    ]
    refused = save(client_without)
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "engine.unreachable")


# --- saving ----------------------------------------------------------------------------------------


def test_a_saved_file_is_the_one_that_the_editor_would_get(client: FlaskClient, sketch_url: str) -> None:
    name = new_name()
    response = save(client, seed=5, file_name=name)
    assert response.status_code == 201
    document = response.get_json()
    assert (document["file_name"], document["sketch"]) == (f"{name}.json", True)
    assert (document["model"], document["task"]) == ("sd-1.5-pruned-emaonly", "generate")
    assert "editor_file" not in document
    expected = editor_file(client, seed=5)["editor_file"]
    assert without_prefix(stored(sketch_url, f"{name}.json")) == without_prefix(expected)


def without_prefix(document: Any) -> Any:
    nodes = [node for node in document["nodes"] if node["type"] != "SaveImage"]
    return json.dumps({**document, "nodes": nodes}, sort_keys=True)


def test_a_file_is_never_replaced(client: FlaskClient, sketch_url: str) -> None:
    name = new_name()
    assert save(client, seed=5, file_name=name).status_code == 201
    before = stored(sketch_url, f"{name}.json")
    again = save(client, seed=6, file_name=f"{name}.json")
    error = again.get_json()["error"]
    assert (again.status_code, error["code"]) == (409, "engine.workflow_exists")
    assert error["details"]["file_name"] == f"{name}.json"
    assert again.headers["x-should-retry"] == "false"
    assert stored(sketch_url, f"{name}.json") == before
    saved = [save(client, task="vary").get_json()["file_name"] for _ in range(2)]
    assert len(set(saved)) == 2
    assert all(each.startswith("easel-sd-1.5-pruned-emaonly-vary") for each in saved)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "nul", 5, ["a"], "x" * 300])
def test_other_names_are_refused(client: FlaskClient, name: Any) -> None:
    response = save(client, file_name=name)
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        400,
        "request.invalid_value",
        "file_name",
    )


def test_saving_needs_operate_and_is_in_the_audit_log(make_app: MakeApp) -> None:
    easel = Installation(make_app())
    easel.add("owner", ["operate"])
    easel.add("phone", ["draw", "view"])
    easel.add("one", ["operate"], models=["sdxl-turbo"])
    body = {"prompt": "a secret cat", "model": "sd-1.5", "file_name": new_name()}
    assert easel.call("phone", "POST", SAVE, body).status_code == 403
    assert easel.call("one", "POST", SAVE, body).status_code == 404
    assert easel.call("owner", "POST", SAVE, body).status_code == 201
    assert easel.call("owner", "POST", SAVE, body).status_code == 409
    entries = [entry for entry in easel.container.audit.entries() if entry.action == "workflows.save"]
    assert {entry.who for entry in entries} == {"owner"}
    assert {entry.result for entry in entries} == {f"{body['file_name']}.json", "engine.workflow_exists"}
    target = {"model": "sd-1.5-pruned-emaonly", "task": "generate", "file_name": f"{body['file_name']}.json"}
    assert entries[0].target == target
    assert "secret" not in (easel.container.state_dir / "audit.jsonl").read_text()
