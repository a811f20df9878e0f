"""What a pull has to do: which files are missing, where they go, and whether they fit on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from errors import InvalidValue, ModelDiskFull
from model_files.folders import ModelFolders
from model_files.part_file import part_path
from model_files.weights import ModelWithFiles, Weights

FileState = Literal["waiting", "checking", "pulling", "retrying", "done", "failed", "cancelled"]
_SPARE_BYTES = 100_000_000
"""What the disk keeps free"""


@dataclass
class FileProgress:
    """How far one file of a pull is. Sizes in bytes."""

    name: str
    folder: str
    size: int | None
    state: FileState = "waiting"
    received: int = 0
    reason: str = ""
    """Why it waits or failed; empty if there is nothing to say"""
    code: str | None = None
    """Of the error, if it failed"""


@dataclass(frozen=True)
class PullPlan:
    """The files that are missing, each with its place."""

    models: tuple[str, ...]
    files: tuple[Weights, ...]
    targets: tuple[Path, ...]
    present: int = 0
    """Files of the models that are there already"""

    def check_space(self) -> None:
        """Raises ModelDiskFull if the files do not fit on their disks, as far as the catalogue knows their sizes."""
        check_space((target, file.size) for target, file in zip(self.targets, self.files, strict=True))


def plan_pull(models: Sequence[ModelWithFiles], folders: ModelFolders) -> PullPlan:
    """What is missing of `models`. The caller has checked their licences. Raises ModelPathUnsafe, and InvalidValue as
    `files_of` does."""
    unique = files_of(models, folders.target)  # two spellings of a folder may mean one place
    missing = {target: file for target, file in unique.items() if folders.find(file) is None}
    return PullPlan(
        tuple(dict.fromkeys(model.id for model in models)),
        tuple(missing.values()),
        tuple(missing),
        len(unique) - len(missing),
    )


_Place = TypeVar("_Place", bound=Hashable)


def files_of(models: Sequence[ModelWithFiles], place: Callable[[Weights], _Place]) -> dict[_Place, Weights]:
    """Every file of `models` once, by its `place`. Raises InvalidValue if two of them mean different files by one name: only
    one of these can be there."""
    found: dict[_Place, tuple[str, Weights]] = {}
    for model in models:
        for file in model.files.values():
            key = place(file)
            other, known = found.setdefault(key, (model.id, file))
            if not _may_be_same(known, file):
                raise InvalidValue(
                    f"{other} and {model.id} need different files called {file.folder}/{file.name}: {_source(known)} and "
                    f"{_source(file)}. Give one of them another `name` in the catalogue, or pull only one of the two.",
                    param="models",
                )
            if _facts(file) > _facts(known):  # such as an entry of the owner's without url
                found[key] = (model.id, file)
    return {key: file for key, (_, file) in found.items()}


def _may_be_same(first: Weights, second: Weights) -> bool:
    """Equal hashes decide; else what both know must be equal."""
    if first.sha256 is not None and second.sha256 is not None:
        return first.sha256 == second.sha256
    pairs = ((first.url, second.url), (first.size, second.size))
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _facts(file: Weights) -> tuple[bool, bool, bool]:
    return file.url is not None, file.sha256 is not None, file.size is not None


def _source(file: Weights) -> str:
    size = "" if file.size is None else f" ({file.size:,} bytes)"
    return f"{file.url or 'one without url'}{size}"


def check_space(sizes: Iterable[tuple[Path, int | None]]) -> None:
    """Raises ModelDiskFull if what is missing of all files together does not fit on their disks."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for target, size in sizes:
        folder = next(path for path in target.parents if path.is_dir())
        disk = os.stat(folder).st_dev
        needed[disk] = needed.get(disk, 0) + max(0, (size or 0) - _size_of(part_path(target)))
        places[disk] = folder
    for disk, folder in places.items():
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        if needed[disk] and needed[disk] + _SPARE_BYTES > free:
            raise ModelDiskFull(
                f"The missing files need {needed[disk] / 1e9:.2f} GB, and the disk of {folder.name} has "
                f"{free / 1e9:.2f} GB free. Nothing was pulled.",
                needed=needed[disk],
                free=free,
            )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
