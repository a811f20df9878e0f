"""A model that needs a newer ComfyUI than the connected one: every list says so, and a request fails early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from freezing_proxy import FreezingProxy

from tests.conftest import SMALL_CATALOGUE, MakeApp
from tests.waiting import wait_until

MODEL = "flux-schnell-fp8"
NEEDS = '    needs: {comfyui: "0.8.0", too_old: "0.3.64"}\n'


@pytest.fixture
def engine(sketch_url: str) -> Iterator[FreezingProxy]:
    with FreezingProxy(sketch_url) as proxy:
        yield proxy


@pytest.fixture
def app(make_app: MakeApp, tmp_path: Path, engine: FreezingProxy) -> Any:
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text("utf-8")
    (tmp_path / "catalogue.yaml").write_text(text.replace(f"  {MODEL}:\n", f"  {MODEL}:\n{NEEDS}"), "utf-8")
    return make_app(catalogue=str(tmp_path / "catalogue.yaml"), engine__url=engine.url, images__list="all")


def draw(client: FlaskClient, model: str = MODEL) -> Any:
    return client.post("/v1/images/generations", json={"prompt": "a fox", "model": model})


def listed(client: FlaskClient, model: str = MODEL) -> Any:
    """What the list says about the model on this engine, once that is known."""

    def entry() -> Any:
        return {each["id"]: each for each in client.get("/v1/models").get_json()["data"]}[model]["engine"]

    return wait_until(entry)


def test_a_request_fails_before_anything_else_with_the_version_to_get(
    app: Any, engine: FreezingProxy
) -> None:
    engine.version = "0.3.64"
    client = app.test_client()
    answer = draw(client)
    assert answer.status_code == 503
    error = answer.get_json()["error"]
    assert error["code"] == "engine.too_old"
    assert (
        "needs ComfyUI 0.8.0 for the task generate; this one is 0.3.64. Update ComfyUI to 0.8.0"
        in error["message"]
    )
    assert "/prompt" not in engine.paths
    assert draw(client, "sd-1.5-pruned-emaonly").status_code == 200, "the others draw"


@pytest.mark.parametrize("version", ["0.3.65", "0.8.0", "0.33.1", "1.0", "nightly", "v0.8.1-12-gabcdef"])
def test_a_version_that_is_not_known_to_be_too_old_is_tried(
    app: Any, engine: FreezingProxy, version: str
) -> None:
    engine.version = version
    assert draw(app.test_client()).status_code == 200


@pytest.mark.parametrize("version", ["0.3.64", "0.3.9", "v0.3.64-3-gabcdef", "0.2"])
def test_a_version_that_is_too_old_is_not(app: Any, engine: FreezingProxy, version: str) -> None:
    engine.version = version
    assert draw(app.test_client()).get_json()["error"]["code"] == "engine.too_old"


def test_an_update_of_comfyui_is_noticed_without_a_restart(app: Any, engine: FreezingProxy) -> None:
    engine.version = "0.3.64"
    client = app.test_client()
    assert draw(client).status_code == 503
    assert listed(client)["needs_comfyui"] == "0.8.0"
    engine.version = "0.8.0"
    assert draw(client).status_code == 200
    wait_until(lambda: listed(client)["ready"])


def test_the_lists_the_status_and_the_shell_say_the_same(app: Any, engine: FreezingProxy) -> None:
    engine.version = "0.3.64"
    client = app.test_client()
    facts = listed(client)
    assert facts == {
        "ready": False, "code": "engine.too_old", "files": [], "lacks": [], "needs_comfyui": "0.8.0",
        "fits_gpu": False,
    }  # fmt: skip
    entry = client.get(f"/v1/models/{MODEL}").get_json()
    assert (entry["engine"], entry["needs_comfyui"]) == (facts, "0.8.0")
    assert listed(client, "sd-1.5-pruned-emaonly") == {
        "ready": True, "code": None, "files": [], "lacks": [], "needs_comfyui": None, "fits_gpu": True,
    }  # fmt: skip
    models = wait_until(lambda: client.get("/api/comfyui/status").get_json()["models"])
    (state,) = (model for model in models if model["id"] == MODEL)
    assert {key: state[key] for key in facts} == facts
    run = app.test_cli_runner().invoke
    result = run(args=["check-catalogue", "--check", engine.url])
    assert result.exit_code == 3
    assert "ComfyUI 0.3.64, a GPU with 10.0 GB" in result.stdout
    group = result.stdout[result.stdout.index("not drawable on this engine (1)") :].splitlines()
    assert group[1].startswith(f"  {MODEL} ")
    assert "too big: 12 GB VRAM" in group[1]
    assert group[1].endswith("needs ComfyUI 0.8.0 or newer")
    result = run(args=["check-catalogue", "--check", engine.url, "--json"])
    document = json.loads(result.stdout)
    assert (document["engine"]["version"], document["engine"]["vram_gb"]) == ("0.3.64", 10.0)
    groups = {model["id"]: (model["group"], model["engine"]) for model in document["models"]}
    assert groups[MODEL] == ("not_drawable", facts)
    assert groups["sd-1.5-pruned-emaonly"][0] == "ready"


def test_the_shell_lists_only_the_models_that_are_ready_or_of_a_family(
    app: Any, engine: FreezingProxy
) -> None:
    engine.version = "0.3.64"
    run = app.test_cli_runner().invoke
    result = run(args=["check-catalogue", "--check", engine.url, "--ready", "--family", "flux"])
    assert result.exit_code == 3, "one of the family is not ready"
    assert MODEL not in result.stdout
    assert "\n  flux-schnell " in result.stdout
    assert "sd-1.5" not in result.stdout
    result = run(args=["check-catalogue", "--family", "SD 1"])
    assert (result.exit_code, "sd-1.5-pruned-emaonly" in result.stdout) == (0, True)
    result = run(args=["check-catalogue", "--family", "kanji"])
    assert (result.exit_code, "families: FLUX.1" in result.stderr) == (2, True)
    result = run(args=["check-catalogue", "--ready"])
    assert (result.exit_code, "--ready needs --check URL" in result.stderr) == (2, True)
