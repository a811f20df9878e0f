"""What an engine lacks for the stages is shown before a request asks for them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from schemas import read_yaml
from sketch import SketchProcess
from tests.conftest import NODES, MakeApp
from tests.waiting import wait_until

STAGE_FILES = ("upscale_models", "background_removal")


@pytest.fixture
def poor(make_app: MakeApp, catalogue_files: dict[str, list[str]]) -> Iterator[Flask]:
    """An application whose engine has no file of any stage."""
    files = {folder: names for folder, names in catalogue_files.items() if folder not in STAGE_FILES}
    with SketchProcess(nodes=NODES, files=files) as sketch:
        yield make_app(engine__url=sketch.url)


def stages_of(client: FlaskClient, model: str = "sd-1.5") -> dict[str, Any]:
    found: dict[str, Any] = {}

    def is_known() -> bool:
        found.update(client.get(f"/v1/models/{model}").get_json()["stages"])
        return None not in found.values()

    wait_until(is_known, 60)
    return found


def test_a_model_says_which_values_the_engine_can_do(client: FlaskClient) -> None:
    stages = stages_of(client)
    assert {name: stage["values"] for name, stage in stages.items()} == {
        "upscale": [2, 4],
        "background": ["transparent"],
    }
    assert all(not stage["missing_values"] and stage["pull"] is None for stage in stages.values())
    assert "stages" not in client.get("/v1/models").get_json()["data"][0]


def test_a_model_says_what_is_missing_and_the_command_that_gets_it(
    poor: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "easel.ready"):
        stages = stages_of(poor.test_client())
    upscale = stages["upscale"]
    assert (upscale["values"], upscale["missing_values"]) == ([], [2, 4])
    assert (upscale["code"], upscale["pull"]) == ("model.files_missing", "easel pull-model upscale")
    assert [file["folder"] for file in upscale["files"]] == ["models/upscale_models"]
    assert upscale["files"][0]["url"].startswith("https://")
    assert stages["background"]["pull"] == "easel pull-model background"
    told = [record.message for record in caplog.records if record.name == "easel.ready"]
    assert len(told) == 2
    assert "`upscale` cannot be done now" in told[0]
    assert "easel pull-model upscale gets it." in told[0]


def test_the_status_has_the_same_facts(poor: Flask) -> None:
    client = poor.test_client()
    known = stages_of(client)

    def reported() -> Any:
        return client.get("/api/comfyui/status").get_json()["stages"]

    wait_until(lambda: len(reported()) == 2, 60)
    assert {stage.pop("id"): stage for stage in reported()} == known


def test_check_catalogue_prints_them(poor: Flask, sketch_url: str) -> None:
    url = poor.extensions["easel"].engine_selector.current().url
    result = poor.test_cli_runner().invoke(args=["check-catalogue", "--check", url, "--family", "upscal"])
    assert "upscale  not possible: 2, 4" in result.output, result.output
    assert "; easel pull-model upscale" in result.output
    rich = poor.test_cli_runner().invoke(args=["check-catalogue", "--check", sketch_url, "--ready"])
    assert "upscale  ready: 2, 4" in rich.output, rich.output
    document = json.loads(
        poor.test_cli_runner().invoke(args=["check-catalogue", "--check", url, "--json"]).stdout
    )
    assert document["stages"]["upscale"]["missing_values"] == [2, 4]


def test_a_stage_whose_licence_is_refused_cannot_be_done(make_app: MakeApp) -> None:
    stages = stages_of(make_app(licences__deny=("bsd-3-clause",)).test_client())
    assert stages["upscale"]["code"] == "model.licence_not_accepted"
    assert "licences.deny" in stages["upscale"]["lacks"][0]
    assert stages["background"]["values"] == ["transparent"]


def test_an_imported_model_has_the_stages_too(make_app: MakeApp, tmp_path: Path) -> None:
    export = {
        "3": {"class_type": "KSampler", "inputs": {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0], "seed": 1, "steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    }  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(export))
    app = make_app(catalogue_dir=str(tmp_path / "own"))
    result = app.test_cli_runner().invoke(
        args=["import-workflow", str(tmp_path / "export.json"), "--name", "mine", "--yes"]
    )
    assert result.exit_code == 0, result.output
    client = app.test_client()
    assert stages_of(client, "mine")["upscale"]["values"] == [2, 4]
    body = {"model": "mine", "prompt": "a dog", "size": "256x256", "upscale": 2, "background": "transparent"}
    answer = client.post("/v1/images/generations", json={**body, "response_format": "url"}).get_json()
    assert (answer["size"], answer["background"]) == ("512x512", "transparent"), answer
    stored = client.get("/" + answer["data"][0]["url"].split("/", 3)[3])
    assert Image.open(io.BytesIO(stored.data)).size == (512, 512)
    stored.close()


def test_stages_of_the_owners_folder_are_refused_and_the_rest_of_the_file_is_used(
    make_app: MakeApp, tmp_path: Path
) -> None:
    text = """
models:
  mine:
    title: Mine
    family: SD 1.x
    workflow: sd15_simple
    files: {checkpoint: {name: mine.safetensors, folder: checkpoints}}
    licence: {name: unknown, commercial: unknown}
    size: {default: 512x512, multiple_of: 8, min: 256x256, max: 1024x1024}
stages:
  sharpen: {title: Sharpens, template: x.json.j2, values: [1], files: {}, licence: apache-2.0}
"""
    assert read_yaml(text)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.yaml").write_text(text)
    catalogue = make_app(catalogue_dir=str(tmp_path / "own")).extensions["easel"].catalogue()
    assert "mine" in catalogue.models
    (fault,) = map(str, catalogue.own_faults)
    assert fault.startswith(
        "own/mine.yaml:10: stages: this section is not used: stages are fields of requests"
    )
