"""What an engine lacks for a model, as a value: the same facts for the status, the list of models and the commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compiler import Catalogue, Model, Stage, sample_requests
from compiler.versions import too_old_for
from engine import EngineStats
from errors import EaselError, EngineTooOld, FilesMissing, ModelNotDrawable


@dataclass(frozen=True)
class FileToGet:
    """A file of weights that the engine does not list. `folder`: such as models/loras; None if it is not known."""

    name: str
    folder: str | None
    url: str | None
    size: int | None = None
    """bytes"""
    similar: tuple[str, ...] = ()
    """Files that the engine does list, of which one may be meant"""

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON"""
        return {**asdict(self), "similar": list(self.similar)}


FilePresence = Literal["present", "missing", "unknown"]


@dataclass(frozen=True)
class ModelState:
    """`is_ready`: all of its workflows can be drawn; `is_drawable`: at least one can. `error`: why not all."""

    id: str
    is_ready: bool
    is_drawable: bool
    error: EaselError | None = field(default=None, compare=False)
    files: tuple[FileToGet, ...] = ()
    """Those that the engine lacks"""
    lacks: tuple[str, ...] = ()
    """What else it lacks: nodes, inputs and choices, as sentences"""
    needs_comfyui: str | None = None
    """The version to get, if the engine is too old for one of its tasks"""
    fits_gpu: bool | None = None
    """Whether the GPU has the memory that the model needs; None if one of both is not known"""
    refused_tasks: tuple[str, ...] = ()
    """Tasks that the check of the catalogue refuses"""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of files that the engine lacks"""
        return tuple(file.name for file in self.files)

    def state_of(self, file: str) -> FilePresence:
        """Whether the engine has a file of the model; unknown if the check ended with another error before it."""
        if file in self.missing:
            return "missing"
        is_other = self.error is not None and not isinstance(self.error, FilesMissing)
        return "unknown" if is_other or self.lacks or self.needs_comfyui or self.refused_tasks else "present"

    @property
    def group(self) -> str:
        """`ready`, `missing` or `not_drawable`: the engine is too old, or the check of the catalogue refuses every task."""
        if self.is_ready:
            return "ready"
        return "missing" if (self.files or self.lacks) and not self.needs_comfyui else "not_drawable"

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON, without the id and what only the catalogue says."""
        return {
            "ready": self.is_ready,
            "code": self.error.code if self.error else None,
            "files": [file.facts for file in self.files],
            "lacks": list(self.lacks),
            "needs_comfyui": self.needs_comfyui,
            "fits_gpu": self.fits_gpu,
        }


def model_state(
    model: Model, catalogue: Catalogue, errors: Sequence[EaselError], stats: EngineStats | None
) -> ModelState:
    """The state of a model of which each sample request (see `sample_requests`) had at most one of `errors`."""
    return ModelState(
        model.id,
        is_ready=not errors,
        is_drawable=len(errors) < len(sample_requests(model, catalogue)),
        error=errors[0] if errors else None,
        files=missing_files(model, errors),
        lacks=tuple(
            dict.fromkeys(
                error.message
                for error in errors
                if not isinstance(error, FilesMissing | EngineTooOld | ModelNotDrawable)
            )
        ),
        needs_comfyui=_needed_version(model, catalogue, errors, stats),
        fits_gpu=fits_gpu(model, stats),
        refused_tasks=tuple(catalogue.undrawable.get(model.id, ())),
    )


def missing_files(holder: Model | Stage, errors: Iterable[EaselError]) -> tuple[FileToGet, ...]:
    """The files that the errors name, each once."""
    sizes = {file.name: file.size for file in holder.files.values()}
    found = {
        (file["folder"], file["name"]): FileToGet(
            str(file["name"]),
            file["folder"],
            file["url"],
            sizes.get(str(file["name"])),
            (*file["ambiguous"], *file["nearest"]),
        )
        for error in errors
        if isinstance(error, FilesMissing)
        for file in error.details.get("files", ())
    }
    return tuple(found.values())


def _needed_version(
    model: Model, catalogue: Catalogue, errors: Sequence[EaselError], stats: EngineStats | None
) -> str | None:
    """The newest version that an error names, or that a task needs which no sample request has tried."""
    if stats is None or stats.is_sketch:
        return None
    for error in errors:
        if isinstance(error, EngineTooOld):
            return str(error.details["needs"])
    needs = (need for task in model.workflows for need in catalogue.needs(model, task))
    found = too_old_for(needs, stats.version)
    return found.comfyui if found else None


def fits_gpu(model: Model, stats: EngineStats | None) -> bool | None:
    """Whether the GPU has the memory that the model needs; None if one of both is not known, as with `--cpu`."""
    if stats is None or not stats.has_gpu or stats.vram_total is None or model.min_vram_gb is None:
        return None
    return stats.vram_total >= model.min_vram_gb * 1e9
