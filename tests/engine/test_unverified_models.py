"""Models whose nodes only ComfyUI's documentation describes, on an engine that lacks them, on one that has them, and on the
sketch engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from freezing_proxy import FreezingProxy

from tests.conftest import NODES, ROOT, MakeApp
from tests.waiting import wait_until

MODEL = "flux3-klein"
REASONS = ["CLIPLoader.type flux3", "ReferenceMultiLatent"]


def draw(app: Any) -> Any:
    request = {"prompt": "a fox", "model": MODEL, "size": "256x256", "response_format": "b64_json"}
    return app.test_client().post("/v1/images/generations", json=request)


def entry(app: Any) -> Any:
    return wait_until(
        lambda: (found := app.test_client().get(f"/v1/models/{MODEL}").get_json())["engine"] and found
    )


def test_an_engine_without_the_nodes_is_too_old_in_the_list_and_for_a_request(
    make_app: MakeApp, recorded_sketch_url: str
) -> None:
    with FreezingProxy(recorded_sketch_url) as engine:
        engine.version = "0.33.0"
        app = make_app(engine__url=engine.url)
        found = entry(app)
        assert found["unverified"] == REASONS
        assert (found["engine"]["ready"], found["engine"]["needs_comfyui"]) == (False, "0.41.0")
        error = draw(app).get_json()["error"]
        assert error["code"] == "engine.too_old"
        assert "needs ComfyUI 0.41.0" in error["message"]
        assert "/prompt" not in engine.paths


def test_an_engine_that_may_have_the_nodes_but_does_not_is_named_with_what_it_lacks(
    make_app: MakeApp, recorded_sketch_url: str
) -> None:
    with FreezingProxy(recorded_sketch_url) as engine:
        engine.version = "0.45.0"
        error = draw(make_app(engine__url=engine.url)).get_json()["error"]
        assert error["code"] == "engine.nodes_missing"
        assert "CLIPLoader does not offer type 'flux3'" in error["message"]


def test_an_engine_that_has_the_nodes_draws(make_app: MakeApp, sketch_url: str) -> None:
    with FreezingProxy(sketch_url) as engine:
        engine.version = "0.41.0"
        app = make_app(engine__url=engine.url)
        assert entry(app)["engine"]["ready"]
        assert draw(app).status_code == 200


def test_the_sketch_engine_draws_them(make_app: MakeApp, sketch_url: str) -> None:
    app = make_app(engine__url=sketch_url)
    assert (entry(app)["engine"]["ready"], entry(app)["unverified"]) == (True, REASONS)
    assert draw(app).status_code == 200


def only_the_model(path: Path) -> str:
    """The project's catalogue with one model: learned nodes of which a class has changed make all be proved again."""
    document = yaml.safe_load((ROOT / "catalogue.yaml").read_text("utf-8"))
    model = document["models"][MODEL]
    document |= {"default_model": MODEL, "models": {MODEL: model}}
    loras = document["loras"].items()
    document["loras"] = {name: lora for name, lora in loras if model["family"] in lora["families"]}
    path.write_text(yaml.safe_dump(document), "utf-8")
    return str(path)


def test_what_a_newer_engine_says_is_learned_and_the_mark_is_gone(
    make_app: MakeApp, sketch_url: str, tmp_path: Path
) -> None:
    with FreezingProxy(sketch_url) as engine:
        engine.version = "0.45.0"
        app = make_app(engine__url=engine.url, catalogue=only_the_model(tmp_path / "catalogue.yaml"))
        assert entry(app)["unverified"] == REASONS
        result = app.test_cli_runner().invoke(args=["snapshot-nodes", engine.url])
        assert result.exit_code == 0, result.output
        assert "new      ReferenceMultiLatent\n" in result.stdout
        assert "changed  CLIPLoader\n" in result.stdout
        again = app.test_cli_runner().invoke(args=["check-catalogue", "--family", "FLUX.3"])
        assert "unverified" not in again.stdout
        wait_until(lambda: entry(app)["unverified"] == [])
        assert draw(app).status_code == 200


def test_an_engine_without_the_nodes_can_be_learned_all_the_same(
    make_app: MakeApp, recorded_sketch_url: str
) -> None:
    with FreezingProxy(recorded_sketch_url) as engine:
        engine.version = "0.33.0"
        result = make_app().test_cli_runner().invoke(args=["snapshot-nodes", engine.url])
        assert result.exit_code == 0, result.output


def test_the_shipped_nodes_are_not_written_from_documentation(make_app: MakeApp, sketch_url: str) -> None:
    before = NODES.read_bytes()
    result = make_app().test_cli_runner().invoke(args=["snapshot-nodes", sketch_url, "--shipped"])
    assert result.exit_code == 2
    assert "only ComfyUI's documentation describes" in result.stderr
    assert NODES.read_bytes() == before
