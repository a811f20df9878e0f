"""Which models to begin with on a machine."""

from __future__ import annotations

from compiler import Catalogue, Model
from compiler.versions import is_older

_NO_GPU_BYTES = 4_000_000_000
"""Without a GPU, only the smallest models draw in a bearable time"""


def first_models(
    catalogue: Catalogue, gpu_bytes: int | None, comfyui_version: str | None = None
) -> tuple[Model, ...]:
    """At most three models that draw from a text, smallest download first: the smallest one, and the two largest that the
    GPU has the memory for, each of another family. Only those that everybody may download at once: the licence need not be
    accepted, the files are not gated, their sizes are known, and `comfyui_version` is not too old."""
    limit = gpu_bytes or _NO_GPU_BYTES
    fitting: dict[str, Model] = {}
    for model in sorted(catalogue.visible_models, key=lambda model: (download_bytes(model), model.id)):
        if _is_simple(model, catalogue, comfyui_version) and (model.min_vram_gb or 0) * 1e9 <= limit:
            fitting.setdefault(model.family, model)
    smallest, others = list(fitting.values())[:1], list(fitting.values())[1:]
    largest = sorted(others, key=lambda model: model.min_vram_gb or 0)[-2:]
    return (*smallest, *sorted(largest, key=download_bytes))


def download_bytes(model: Model) -> int:
    """The sizes of its files, as far as they are known."""
    return sum(file.size or 0 for file in model.files.values())


def pull_line(model: Model, easel: str = "easel") -> str:
    """The command that gets a model, with its size as a comment."""
    return f"{easel} pull-model {model.id}   # {download_bytes(model) / 1e9:.1f} GB"


def _is_simple(model: Model, catalogue: Catalogue, comfyui_version: str | None) -> bool:
    needed = catalogue.needed_version(model)
    return (
        "generate" in model.workflows
        and bool(model.files)
        and all(file.url and file.size and not file.gated for file in model.files.values())
        and not catalogue.undrawable.get(model.id)
        and not catalogue.unverified(model)
        and catalogue.licences.state(model) == "allowed"
        and not (comfyui_version and needed and is_older(comfyui_version, needed))
    )
