"""Where files of weights go, and which of them may be removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errors import ModelFileBusy, ModelsFolderMissing, SettingsInvalid
from model_files import ModelFolders, find_model_folders, plan_pull, plan_removal, remove, shell_commands
from model_files.part_file import locked_part
from schemas import read_yaml
from tests.model_files.test_download import Model, weights


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    (tmp_path / "ComfyUI/models").mkdir(parents=True)
    return tmp_path / "ComfyUI/models"


def test_a_missing_setting_or_folder_is_an_error(tmp_path: Path) -> None:
    for value in ("", str(tmp_path / "missing")):
        with pytest.raises(ModelsFolderMissing):
            find_model_folders(value, "", read_yaml)


def test_extra_model_paths_beside_comfyui_are_read(models_dir: Path, tmp_path: Path) -> None:
    (models_dir.parent / "extra_model_paths.yaml").write_text(
        "a111:\n"
        f"  base_path: {tmp_path}/webui\n"
        "  checkpoints: models/Stable-diffusion\n"
        "  loras: |\n    models/Lora\n    models/LyCORIS\n"
        "other:\n  clip: relative/clip\n"
        "empty:\n"
    )
    folders = find_model_folders(str(models_dir), "", read_yaml)
    webui = tmp_path / "webui/models"
    assert folders.places("checkpoints") == [models_dir / "checkpoints", webui / "Stable-diffusion"]
    assert folders.places("loras") == [models_dir / "loras", webui / "Lora", webui / "LyCORIS"]
    assert folders.places("text_encoders")[1:] == [
        models_dir / "clip",
        models_dir.parent / "relative/clip",
    ]
    (webui / "Stable-diffusion").mkdir(parents=True)
    (webui / "Stable-diffusion/a.safetensors").write_bytes(b"x")
    assert plan_pull([Model("m", {"c": weights(None, 1)})], folders).files == ()


def test_new_files_go_where_extra_model_paths_has_its_default(models_dir: Path, tmp_path: Path) -> None:
    extra = tmp_path / "paths.yaml"
    extra.write_text("x:\n  base_path: big\n  is_default: true\n  checkpoints: c\n")
    folders = find_model_folders(str(models_dir), str(extra), read_yaml)
    assert folders.target(weights(None)) == tmp_path / "big/c/a.safetensors"


@pytest.mark.parametrize("text", ["[1]", "a: 1", "a:\n  checkpoints: [1]", "a: {b: c", "a: &a [*a]"])
def test_a_damaged_extra_model_paths_file_is_an_error(text: str, models_dir: Path) -> None:
    (models_dir.parent / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(SettingsInvalid, match=r"extra_model_paths\.yaml"):
        find_model_folders(str(models_dir), "", read_yaml)


def test_an_extra_model_paths_file_that_is_named_must_exist(models_dir: Path) -> None:
    with pytest.raises(SettingsInvalid):
        find_model_folders(str(models_dir), str(models_dir / "missing.yaml"), read_yaml)


# --- removing --------------------------------------------------------------------------------------


def put(folders: ModelFolders, *names: str) -> None:
    for name in names:
        path = folders.models_dir / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")


def model(name: str, *files: str) -> Any:
    return Model(name, {file: weights(None, 1, name=file) for file in files})


def test_removing_a_model_keeps_what_models_that_are_there_need(models_dir: Path) -> None:
    folders = ModelFolders(models_dir)
    put(folders, "own", "shared", "half")
    others = [model("whole", "shared"), model("partial", "half", "absent")]
    removal = plan_removal([model("m", "own", "shared", "half")], others, folders)
    assert [path.name for path in removal.paths] == ["own", "half"]
    assert removal.kept == {"checkpoints/shared": ("whole",)}
    remove(removal)
    assert [path.name for path in (models_dir / "checkpoints").iterdir()] == ["shared"]


def test_removing_a_model_keeps_what_something_else_uses(models_dir: Path) -> None:
    folders = ModelFolders(models_dir)
    put(folders, "own")
    kept = plan_removal([model("m", "own")], [], folders, {("checkpoints", "own"): "the stage upscale"})
    assert (kept.paths, kept.kept) == ((), {"checkpoints/own": ("the stage upscale",)})


def test_removing_frees_parts_and_wrong_files_too(models_dir: Path) -> None:
    folders = ModelFolders(models_dir)
    put(folders, "own.part", "own.part.json", "own.wrong", "other.part")
    remove(plan_removal([model("m", "own")], [], folders))
    assert [path.name for path in (models_dir / "checkpoints").iterdir()] == ["other.part"]


def test_a_file_that_is_being_pulled_is_not_removed(models_dir: Path) -> None:
    import threading

    folders = ModelFolders(models_dir)
    with (
        locked_part(folders.target(weights(None)), lambda: False, lambda: None, threading.Event()),
        pytest.raises(ModelFileBusy),
    ):
        plan_removal([model("m", "a.safetensors")], [], folders)


def test_files_of_extra_folders_are_not_removed(models_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "webui").mkdir()
    (tmp_path / "webui/own").write_bytes(b"x")
    folders = ModelFolders(models_dir, {"checkpoints": [tmp_path / "webui"]})
    assert plan_removal([model("m", "own")], [], folders).paths == ()


def test_commands_for_another_machine_are_quoted_and_check_the_hash() -> None:
    file = weights("https://models.example/a b?c='d'", name="SD/it's.safetensors", gated=True)
    (line,) = shell_commands([Model("m", {"c": file})])
    assert line.startswith("mkdir -p checkpoints/SD && curl -L --fail")
    assert "sha256sum -c" in line
    assert '"Authorization: Bearer $HF_TOKEN"' in line
    assert """'checkpoints/SD/it'"'"'s.safetensors.part'""" in line
