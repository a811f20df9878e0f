"""Where a ComfyUI of this machine keeps its models: what it says itself, its command line, and the usual places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MARKS = ("checkpoints", "diffusion_models", "unet")
"""Folders of which a folder `models` has at least one"""


@dataclass(frozen=True)
class ComfyuiPlace:
    """`models_dir`: the folder `models`; `extra_model_paths`: its own file of further folders, if it is not the one beside
    that folder; `source`: how it was found, for people."""

    models_dir: Path
    source: str
    extra_model_paths: Path | None = None


def comfyui_place(
    folders: Mapping[str, Sequence[str]], arguments: Sequence[str], working_folder: Path | None
) -> ComfyuiPlace | None:
    """Where a running ComfyUI has its models, if that is on this machine. `folders`: folder -> the places that it names;
    `arguments`: its command line; `working_folder`: that of its process, None if it is not known."""
    extra = _option(arguments, "--extra-model-paths-config")
    extra_file = working_folder / extra if extra and working_folder else Path(extra) if extra else None
    extra_file = extra_file if extra_file and extra_file.is_absolute() and _is_file(extra_file) else None
    if named := _named_folder(folders):
        return ComfyuiPlace(named, "as ComfyUI says", extra_file)
    for base, source in _bases(arguments, working_folder):
        if base.is_absolute() and is_models_folder(base / "models"):
            return ComfyuiPlace(base / "models", source, extra_file)
    return None


def place_of_folder(folder: Path) -> ComfyuiPlace | None:
    """A ComfyUI that does not run; `folder`: its base folder."""
    models = folder / "models"
    return ComfyuiPlace(models, "in a usual place") if is_models_folder(models) else None


def is_models_folder(folder: Path) -> bool:
    """Whether `folder` is a folder of models that this user may read. Never raises."""
    try:
        return any((folder / name).is_dir() for name in _MARKS)
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    """Whether it is a file. Never raises: the path is what a server says, and may be too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def usual_folders(home: Path) -> Iterator[Path]:
    """Base folders of a ComfyUI in the usual places: a checkout, comfy-cli, the desktop app, Stability Matrix, Docker
    images, Pinokio."""
    for name in ("ComfyUI", "comfy/ComfyUI", "Documents/ComfyUI", "comfyui", "src/ComfyUI", "git/ComfyUI"):
        yield home / name
    yield home / "StabilityMatrix/Data/Packages/ComfyUI"
    yield home / "StabilityMatrix/Packages/ComfyUI"
    yield home / ".local/share/StabilityMatrix/Packages/ComfyUI"
    yield home / "pinokio/api/comfy.git/app"
    yield from (Path("/opt/ComfyUI"), Path("/workspace/ComfyUI"), Path("/srv/ComfyUI"))


def _named_folder(folders: Mapping[str, Sequence[str]]) -> Path | None:
    """The folder `models` that most of the named folders are in."""
    counts: Counter[Path] = Counter()
    for name, places in folders.items():
        counts.update({Path(place).parent for place in places if Path(place).name == name})
    # A relative one would be looked for in the working directory of this command.
    existing = (
        folder for folder, _ in counts.most_common() if folder.is_absolute() and is_models_folder(folder)
    )
    return next(existing, None)


def _bases(arguments: Sequence[str], working_folder: Path | None) -> Iterable[tuple[Path, str]]:
    if base := _option(arguments, "--base-directory"):
        yield Path(base) if working_folder is None else working_folder / base, "by its --base-directory"
    scripts = [Path(each) for each in arguments if each.endswith("main.py")]
    for script in scripts:
        if working_folder is not None or script.is_absolute():
            yield (working_folder or Path()) / script.parent, "beside its program"


def _option(arguments: Sequence[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name:
            return next(iter(arguments[position + 1 : position + 2]), None)
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None
