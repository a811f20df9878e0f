"""easel adopt-models: files that are there become models of the owner's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from commands.adopt_models import one_of_each
from tests.conftest import ROOT, MakeApp
from tests.waiting import wait_until
from tests.weights.heads import FLUX, UNET, write_weights
from weights import FoundFile

WHOLE = {
    **{f"model.diffusion_model.{name}": shape for name, shape in UNET(2048).items()},
    "first_stage_model.x": (1,),
    "conditioner.x": (1,),
}
CHECKPOINT = {"first_stage_model.x": (1,), "cond_stage_model.x": (1,)}


class Adopting:
    def __init__(self, make_app: MakeApp, folder: Path) -> None:
        self.models, self.own = folder / "models", folder / "own"
        self.app = make_app(catalogue_dir=str(self.own), engine__models_dir=str(self.models))

    def run(self, *options: str, answer: str = "") -> Result:
        return self.app.test_cli_runner().invoke(args=["adopt-models", *options], input=answer)

    def found(self, *options: str) -> dict[str, Any]:
        result = self.run("--dry-run", "--as", "json", *options)
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document


@pytest.fixture
def adopting(make_app: MakeApp, tmp_path: Path) -> Adopting:
    return Adopting(make_app, tmp_path)


def test_an_unknown_checkpoint_is_served_at_once_with_an_unknown_licence(adopting: Adopting) -> None:
    write_weights(adopting.models / "checkpoints/art/My Näme (v2).safetensors", WHOLE)
    client = adopting.app.test_client()
    assert client.get("/v1/models/My-N-me-v2").status_code == 404
    result = adopting.run("--yes")
    assert result.exit_code == 0, result.output
    text = (adopting.own / "my-n-me-v2.yaml").read_text()
    entry = yaml.safe_load(text)["models"]["My-N-me-v2"]
    assert entry["files"]["checkpoint"] == {"name": "art/My Näme (v2).safetensors", "folder": "checkpoints"}
    assert entry["workflow"] == "sdxl_simple"
    wait_until(lambda: client.get("/v1/models/My-N-me-v2").status_code == 200)
    listed = client.get("/v1/models/My-N-me-v2").get_json()
    assert (listed["licence"]["name"], listed["licence"]["state"]) == ("unknown", "not_accepted")
    assert listed["not_drawable"] == {}
    assert adopting.found()["new"] == []


def test_known_names_are_ready_and_get_no_entry(adopting: Adopting) -> None:
    write_weights(adopting.models / "checkpoints/sub/sd_xl_base_1.0.safetensors", WHOLE)
    found = adopting.found()
    assert (found["ready"], found["new"]) == (["sdxl-base-1.0"], [])


def test_nothing_is_written_without_agreement_or_over_anything(adopting: Adopting) -> None:
    write_weights(adopting.models / "checkpoints/mine.safetensors", WHOLE)
    assert adopting.run(answer="n\n").exit_code == 2
    assert not adopting.own.exists()
    adopting.own.mkdir()
    (adopting.own / "mine.yaml").write_text("models: {}\n")
    assert adopting.run("--yes").exit_code == 0
    assert sorted(path.name for path in adopting.own.iterdir()) == ["mine-2.yaml", "mine.yaml"]
    assert (adopting.own / "mine.yaml").read_text() == "models: {}\n"


def test_names_that_are_taken_get_a_number(adopting: Adopting) -> None:
    for folder in ("", "a/", "b/"):
        write_weights(adopting.models / f"checkpoints/{folder}SDXL.safetensors", WHOLE)
    assert [each["id"] for each in adopting.found()["new"]] == ["SDXL-2", "SDXL-3", "SDXL-4"]


def test_files_that_cannot_be_used_say_why(adopting: Adopting) -> None:
    checkpoints = adopting.models / "checkpoints"
    write_weights(checkpoints / "flux.safetensors", FLUX())
    (checkpoints / "old.ckpt").write_bytes(b"\x80\x02cposix\nsystem\n")
    (checkpoints / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    found = {each["file"]: each["why"] for each in adopting.found()["not_used"]}
    assert "move it there" in found["checkpoints/flux.safetensors"]
    assert "not opened" in found["checkpoints/old.ckpt"]
    assert "truncated" in found["checkpoints/cut.safetensors"]


def test_missing_companions_are_named_and_present_ones_chosen(adopting: Adopting) -> None:
    write_weights(adopting.models / "diffusion_models/mine.safetensors", FLUX())
    (new,) = adopting.found()["new"]
    assert "vae/ae.safetensors" in new["missing"]
    write_weights(adopting.models / "vae/ae.safetensors", CHECKPOINT)
    (new,) = adopting.found()["new"]
    assert "vae/ae.safetensors" not in new["missing"]


T5 = {
    "encoder.block.0.layer.0.SelfAttention.k.weight": (1, 4096),
    "encoder.block.23.layer.0.SelfAttention.k.weight": (1, 1),
}
CLIP_L = {f"text_model.encoder.layers.{layer}.mlp.fc1.weight": (1, 768) for layer in range(12)}
CLIP_24 = {f"text_model.encoder.layers.{layer}.mlp.fc1.weight": (1, 768) for layer in range(24)}


def test_text_encoders_under_other_names_are_known_by_their_tensors_and_used(adopting: Adopting) -> None:
    write_weights(adopting.models / "diffusion_models/mine.safetensors", FLUX())
    write_weights(adopting.models / "text_encoders/sub/My T5.safetensors", T5)
    write_weights(adopting.models / "clip/another.safetensors", CLIP_24)
    (new,) = adopting.found()["new"]
    assert new["entry"]["files"]["t5xxl"] == {"name": "sub/My T5.safetensors", "folder": "text_encoders"}
    assert "uses text_encoders/sub/My T5.safetensors: by its tensors it is t5xxl" in new["remark"]
    assert new["missing"] == ["text_encoders/clip_l.safetensors", "vae/ae.safetensors"]
    write_weights(adopting.models / "clip/mine_l.safetensors", CLIP_L)
    (new,) = adopting.found()["new"]
    assert new["entry"]["files"]["clip_l"]["name"] == "mine_l.safetensors"
    write_weights(adopting.models / "text_encoders/clip_l.safetensors", CLIP_L)
    (new,) = adopting.found()["new"]
    assert new["entry"]["files"]["clip_l"]["name"] == "clip_l.safetensors", (
        "the name that is known comes first"
    )
    assert adopting.run("--yes").exit_code == 0
    written = yaml.safe_load((adopting.own / "mine.yaml").read_text())["models"]["mine"]["files"]
    assert written["t5xxl"]["name"] == "sub/My T5.safetensors"


def test_a_renamed_vae_is_known_by_its_hash_and_used(make_app: MakeApp, tmp_path: Path) -> None:
    path = tmp_path / "models/vae/renamed.safetensors"
    write_weights(path, CHECKPOINT)
    write_weights(tmp_path / "models/diffusion_models/mine.safetensors", FLUX())
    content = path.read_bytes()
    text = (ROOT / "catalogue.yaml").read_text()
    known = next(file for file in yaml.safe_load(text)["files"].values() if file["name"] == "ae.safetensors")
    text = text.replace(f"size: {known['size']}", f"size: {len(content)}")
    text = text.replace(known["sha256"], hashlib.sha256(content).hexdigest())
    (tmp_path / "catalogue.yaml").write_text(text)
    app = make_app(
        catalogue=str(tmp_path / "catalogue.yaml"),
        catalogue_dir=str(tmp_path / "own"),
        engine__models_dir=str(tmp_path / "models"),
    )
    result = app.test_cli_runner().invoke(args=["adopt-models", "--hash", "--dry-run", "--as", "json"])
    document = json.loads(result.stdout)
    (new,) = document["new"]
    assert new["entry"]["files"]["vae"]["name"] == "renamed.safetensors"
    assert "ae.safetensors under another name" in new["remark"]
    assert "vae/ae.safetensors" not in new["missing"]
    assert document["not_used"] == []


def test_a_renamed_file_is_known_by_its_hash(make_app: MakeApp, tmp_path: Path) -> None:
    path = tmp_path / "models/checkpoints/renamed.safetensors"
    write_weights(path, WHOLE)
    content = path.read_bytes()
    text = (ROOT / "catalogue.yaml").read_text()
    document = yaml.safe_load(text)
    known = document["files"]["sdxl-base"]
    text = text.replace(f"size: {known['size']}", f"size: {len(content)}")
    text = text.replace(known["sha256"], hashlib.sha256(content).hexdigest())
    (tmp_path / "catalogue.yaml").write_text(text)
    app = make_app(
        catalogue=str(tmp_path / "catalogue.yaml"),
        catalogue_dir=str(tmp_path / "own"),
        engine__models_dir=str(tmp_path / "models"),
    )
    result = app.test_cli_runner().invoke(args=["adopt-models", "--hash", "--dry-run", "--as", "json"])
    (new,) = json.loads(result.stdout)["new"]
    assert new["remark"] == "it is sd_xl_base_1.0.safetensors under another name"
    assert new["entry"]["licence"] == "openrail++-m"


def test_without_a_folder_it_says_which_setting_names_it(make_app: MakeApp) -> None:
    result = make_app().test_cli_runner().invoke(args=["adopt-models"])
    assert (result.exit_code, "engine.models_dir" in result.output) == (2, True)


def test_a_comfyui_that_lists_a_loop_of_links_gives_one_file() -> None:
    names = ["loop/loop/a.safetensors", "a.safetensors", "loop/a.safetensors", "b/c.safetensors"]
    files = one_of_each(FoundFile("checkpoints", name, Path(name), 0) for name in names)
    assert [file.name for file in files] == ["a.safetensors", "b/c.safetensors"]


def test_files_in_the_folders_of_extra_model_paths_are_adopted(adopting: Adopting, tmp_path: Path) -> None:
    write_weights(adopting.models / "checkpoints/mine.safetensors", WHOLE)
    write_weights(tmp_path / "shared/sd/mine.safetensors", WHOLE)
    write_weights(tmp_path / "shared/sd/other.safetensors", WHOLE)
    write_weights(tmp_path / "shared/units/flux.safetensors", FLUX())
    (tmp_path / "extra_model_paths.yaml").write_text(
        f"a111:\n  base_path: {tmp_path / 'shared'}\n  checkpoints: sd\n  unet: units\n"
        f"same:\n  base_path: {adopting.models}\n  checkpoints: checkpoints\n"
    )
    found = adopting.found()
    assert sorted(each["file"] for each in found["new"]) == [
        "checkpoints/mine.safetensors",
        "checkpoints/other.safetensors",
        "diffusion_models/flux.safetensors",
    ]
    (tmp_path / "extra_model_paths.yaml").write_text("[]\n")
    result = adopting.run("--dry-run")
    assert result.exit_code != 0
    assert "extra_model_paths.yaml" in result.output
