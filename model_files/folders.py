"""Where ComfyUI looks for files of weights: its models folder, and those that its extra_model_paths.yaml adds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from errors import ModelPathUnsafe, ModelsFolderMissing, SettingsInvalid
from model_files.weights import Weights

EXTRA_PATHS_FILE = "extra_model_paths.yaml"
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {"text_encoders": ("clip",), "diffusion_models": ("unet",)}
"""Folders in which ComfyUI looks, too, because they had these names before"""


@dataclass(frozen=True)
class ModelFolders:
    """The folders of one ComfyUI. `models_dir` must exist; files are found in all folders and written into the first."""

    models_dir: Path
    extra: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """folder -> further places"""
    defaults: Mapping[str, Path] = field(default_factory=dict)
    """folder -> where new files go, if an extra_model_paths file says so (`is_default`)"""

    def places(self, folder: str) -> list[Path]:
        """All places in which ComfyUI looks for files of `folder`; new files go into the first."""
        first = [self.defaults[folder]] if folder in self.defaults else []
        own = [self.models_dir / name for name in (folder, *_OTHER_NAMES.get(folder, ()))]
        return list(dict.fromkeys([*first, *own, *self.extra.get(folder, ())]))

    def find(self, file: Weights) -> Path | None:
        """The file of this name, and of the right size if that is known; None if there is none."""
        for place in self.places(file.folder):
            path = place / file.name
            try:
                size = path.stat().st_size if path.is_file() else None
            except OSError:
                continue
            if size is not None and file.size in (None, size):
                return path
        return None

    def target(self, file: Weights) -> Path:
        """Where a new `file` goes. Raises ModelPathUnsafe if that is outside its folder, also through a symlink."""
        place = self.places(file.folder)[0]
        name, folder = PurePosixPath(file.name), PurePosixPath(file.folder)
        parts = (*folder.parts, *name.parts)
        if (
            not file.name
            or name.is_absolute()
            or folder.is_absolute()
            or ".." in parts
            or any(character in file.name + file.folder for character in "\\\0\r\n")
        ):
            raise ModelPathUnsafe(
                f"{file.folder}/{file.name} is not a path inside the models folder.", file=file.name
            )
        # The owner may have put a symlink in place of a whole folder; below it, none may lead out.
        inside, path = place.resolve(), (place / name).parent.resolve() / name.name
        if not path.is_relative_to(inside) or path.is_symlink():
            raise ModelPathUnsafe(
                f"{file.folder}/{file.name} leads out of its folder through a symlink. Nothing is written there: remove "
                "the symlink.",
                file=file.name,
            )
        return path


def find_model_folders(models_dir: str, extra_file: str, read_yaml: Any) -> ModelFolders:
    """The folders of the ComfyUI whose models folder is `models_dir`. `extra_file`: its extra_model_paths.yaml; empty: the
    one beside that folder, if there is one. `read_yaml` turns a text into a document or raises ValueError.

    Raises ModelsFolderMissing, and SettingsInvalid for an extra_model_paths file that cannot be read.
    """
    if not models_dir:
        raise ModelsFolderMissing(
            "It is not known where ComfyUI keeps its models: set engine.models_dir to its folder `models`."
        )
    folder = Path(models_dir).expanduser()
    if not folder.is_dir():
        raise ModelsFolderMissing(
            "engine.models_dir is not a folder. Correct the setting, or create the folder."
        )
    path = Path(extra_file).expanduser() if extra_file else folder.parent / EXTRA_PATHS_FILE
    if not extra_file and not path.is_file():
        return ModelFolders(folder)
    try:
        extra, defaults = _read_extra_paths(read_yaml(path.read_text("utf-8")), path.absolute().parent)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsInvalid(f"{path.name} (engine.extra_model_paths) cannot be used: {reason}") from error
    return ModelFolders(folder, extra, defaults)


def _read_extra_paths(document: Any, base: Path) -> tuple[dict[str, list[Path]], dict[str, Path]]:
    """Raises ValueError. Each section has folders with one path a line, relative to `base_path` or to the file."""
    if document is None:
        return {}, {}
    if not isinstance(document, Mapping):
        raise ValueError("it must have sections with folders")
    extra: dict[str, list[Path]] = {}
    defaults: dict[str, Path] = {}
    for name, section in document.items():
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise ValueError(f"{name} must have folders, such as checkpoints: models/checkpoints")
        start = base / os.path.expandvars(os.path.expanduser(str(section.get("base_path", ""))))
        for folder, lines in section.items():
            if folder in ("base_path", "is_default"):
                continue
            if not isinstance(lines, str):
                raise ValueError(f"{name}.{folder} must be one path a line")
            current = next((new for new, old in _OTHER_NAMES.items() if folder in old), str(folder))
            paths = [Path(os.path.normpath(start / line)) for line in lines.split("\n") if line]
            extra.setdefault(current, []).extend(paths)
            if section.get("is_default") and paths:
                defaults[current] = paths[-1]
    return extra, defaults
