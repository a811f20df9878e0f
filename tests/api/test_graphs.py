"""POST /api/graph: the graph of a request, which is the one that is drawn, and the origins of its values."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.api.test_edits import data_url, photo
from tests.api.test_key_permissions import Installation
from tests.conftest import MakeApp

PATH = "/api/graph"


def graph(client: FlaskClient, **body: Any) -> dict[str, Any]:
    response = client.post(PATH, json={"prompt": "a cat", "model": "sdxl", **body})
    assert response.status_code == 200, response.text[:500]
    return dict(response.get_json())


def inputs(document: dict[str, Any], node_class: str) -> dict[str, dict[str, Any]]:
    (node,) = [node for node in document["nodes"] if node["class"] == node_class]
    return {entry["name"]: entry for entry in node["inputs"]}


def test_each_value_says_what_decided_it(client: FlaskClient) -> None:
    document = graph(client, model="sd-1.5", steps=7, seed=5, size="512x768")
    sampler = inputs(document, "KSampler")
    assert (sampler["steps"]["value"], sampler["steps"]["origin"]) == (7, "steps (request)")
    assert sampler["cfg"]["origin"] in ("cfg (workflow)", "cfg (model)")
    assert (sampler["seed"]["value"], sampler["seed"]["origin"]) == (5, "seed")
    assert sampler["denoise"]["origin"] is None
    latent = inputs(document, "EmptyLatentImage")
    assert (latent["width"]["origin"], latent["height"]["origin"]) == ("width (request)", "height (request)")
    assert inputs(document, "CheckpointLoaderSimple")["ckpt_name"]["origin"] == "files.checkpoint (model)"
    assert (document["task"], document["size"], document["jobs"]) == ("generate", "512x768", 1)


def test_links_are_links_and_the_nodes_are_those_of_the_graph(client: FlaskClient) -> None:
    document = graph(client, model="sd-1.5")
    for node in document["nodes"]:
        entries = {entry["name"]: entry for entry in node["inputs"]}
        for name, value in document["graph"][node["id"]]["inputs"].items():
            if entries[name]["link"] is not None:
                assert entries[name]["link"] == value
                assert value[0] in document["graph"]
                assert entries[name]["origin"] is None
            else:
                assert entries[name]["value"] == value
    assert {node["id"] for node in document["nodes"]} == set(document["graph"])


@pytest.mark.parametrize("task", ["edit", "inpaint", "vary"])
def test_the_graph_of_an_edit_needs_no_image(client: FlaskClient, task: str) -> None:
    document = graph(client, model="sd-1.5", task=task)
    assert document["task"] == task
    loaded = [
        entry
        for node in document["nodes"]
        for entry in node["inputs"]
        if entry["value"] in ("image.png", "mask.png")
    ]
    assert {entry["value"] for entry in loaded} == (
        {"image.png", "mask.png"} if task == "inpaint" else {"image.png"}
    )
    assert all(entry["origin"] for entry in loaded)


def test_an_image_may_be_sent_all_the_same(client: FlaskClient) -> None:
    assert graph(client, model="sd-1.5", image=data_url(photo(512, 512)))["task"] == "edit"


def test_loras_and_what_is_ignored_are_named(client: FlaskClient) -> None:
    document = graph(client, model="sdxl-base-1.0", lora="lcm-sdxl", guidance=3)
    origins = {entry["origin"] for node in document["nodes"] for entry in node["inputs"]}
    assert "loras.lcm-sdxl (request)" in origins
    assert "steps (lora)" in origins
    assert [note["field"] for note in document["ignored"]] == ["guidance"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nothing"}, 404, "image.model_not_curated"),
        ({"model": 5}, 400, "request.invalid_value"),
        ({"steps": 1000}, 400, "request.invalid_value"),
        ({"task": "paint"}, 400, "request.invalid_value"),
        ({"task": ["edit"]}, 400, "request.invalid_value"),
        ({"as": "json"}, 400, "request.invalid_value"),
        ({"as": None}, 400, "request.invalid_value"),
        ({"as": "editor", "steps": 1000}, 400, "request.invalid_value"),
        ({"as": "editor", "model": "nothing"}, 404, "image.model_not_curated"),
        ({"task": "edit", "model": "mage-flow"}, 400, "request.invalid_value"),
        ({"prompt": ""}, 422, "image.prompt_required"),
        ({"image": "http://192.0.2.1/a.png"}, 400, "image.url_refused"),
    ],
)
def test_what_would_be_refused_is_refused(
    client: FlaskClient, body: dict[str, Any], status: int, code: str
) -> None:
    response = client.post(PATH, json={"prompt": "a cat", "model": "sd-1.5", **body})
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)


def test_a_graph_counts_for_no_limit_and_shows_only_models_of_the_key(make_app: MakeApp) -> None:
    easel = Installation(make_app())
    easel.add("phone", ["view"], requests_per_day=1, models=["sd-1.5"])
    body = {"prompt": "a cat", "model": "sd-1.5"}
    for _ in range(3):
        assert easel.call("phone", "POST", PATH, body).status_code == 200
    other = easel.call("phone", "POST", PATH, {**body, "model": "sdxl-turbo"})
    assert other.status_code == 404
    assert easel.call("", "POST", PATH, body).status_code == 401
