"""Frees the files of a model that no other model which is there needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import DownloadFailed, ModelFileBusy
from model_files.folders import ModelFolders
from model_files.part_file import facts_path, is_being_pulled, part_path, wrong_path
from model_files.weights import ModelWithFiles, Weights


@dataclass(frozen=True)
class Removal:
    """What removing a model does. `kept`: file -> the models that need it."""

    paths: tuple[Path, ...]
    bytes: int
    kept: dict[str, tuple[str, ...]]


def plan_removal(
    models: Sequence[ModelWithFiles],
    others: Sequence[ModelWithFiles],
    folders: ModelFolders,
    also_used: Mapping[tuple[str, str], str] | None = None,
) -> Removal:
    """Which files of `models` can go: those that no other model of `others` needs whose files are all there.

    `also_used`: folder and name of files that something else uses, and what that is. Raises ModelFileBusy,
    ModelPathUnsafe."""
    needed: dict[tuple[str, str], list[str]] = {key: [user] for key, user in (also_used or {}).items()}
    for other in others:
        if other not in models and all(folders.find(file) for file in other.files.values()):
            for file in other.files.values():
                needed.setdefault((file.folder, file.name), []).append(other.id)
    paths: list[Path] = []
    kept: dict[str, tuple[str, ...]] = {}
    files = {(file.folder, file.name): file for model in models for file in model.files.values()}
    for file in files.values():
        if users := needed.get((file.folder, file.name)):
            kept[f"{file.folder}/{file.name}"] = tuple(users)
            continue
        paths += _paths_of(file, folders)
    return Removal(tuple(paths), sum(path.lstat().st_blocks * 512 for path in paths), kept)


def _paths_of(file: Weights, folders: ModelFolders) -> Iterable[Path]:
    """The file, and what pulls have left beside its place."""
    target = folders.target(file)
    if is_being_pulled(target):
        raise ModelFileBusy(
            f"{file.folder}/{file.name} is being pulled at the moment. Cancel the pull first."
        )
    found = folders.find(file)
    if found is not None and found != target:
        # It may lie in a folder of extra_model_paths, which other programs may use.
        found = found if found.resolve().parent.is_relative_to(folders.models_dir.resolve()) else None
    candidates = (found, part_path(target), facts_path(target), wrong_path(target))
    return [path for path in candidates if path is not None and path.is_file()]


def remove(removal: Removal) -> None:
    """Remove the files. Raises DownloadFailed for one that cannot be removed."""
    for path in removal.paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DownloadFailed(f"{path.name} cannot be removed: {error.strerror}.") from error
