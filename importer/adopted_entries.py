"""Entries of the catalogue for files that are there already: a model like one of the catalogue, with another file. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from compiler import Catalogue, Licence, Model
from compiler.catalogue import File

MAIN_ROLES = ("checkpoint", "diffusion_model")


def adopted_model(
    example: Model,
    catalogue: Catalogue,
    *,
    title: str,
    file: File,
    is_present: Callable[[File], bool],
    stand_in: Callable[[File], File | None] = lambda file: None,
    licence: Licence | None = None,
) -> dict[str, Any]:
    """The entry of a model that is drawn as `example` is, with the weights in `file`. Its other files are those of
    `example`, or of another model with the same workflow if only these are present, or what `stand_in` finds for one that
    is not: a file under another name. `licence`: None if it is not known."""
    role = main_role(example)
    files = {
        name: file if name == role else _companion(name, other, example, catalogue, is_present, stand_in)
        for name, other in example.files.items()
    }
    workflows = dict(example.workflows)
    rule = example.size
    size: dict[str, Any] = {
        "default": str(rule.default),
        "multiple_of": rule.multiple_of,
        "min": str(rule.min),
        "max": str(rule.max),
    }
    if rule.max_pixels is not None:
        size["max_pixels"] = rule.max_pixels
    if rule.suggested:
        size["suggested"] = [str(each) for each in rule.suggested]
    entry: dict[str, Any] = {
        "title": title,
        "family": example.family,
        "workflow": next(iter(workflows.values())) if len(set(workflows.values())) == 1 else workflows,
        "files": {name: _file(each) for name, each in files.items()},
        "licence": (licence.key if licence else None) or {"name": "unknown", "commercial": "unknown"},
        "size": size,
        "limits": {"n": example.limit_n, "batch": example.limit_batch},
    }
    if example.defaults:
        entry["defaults"] = dict(example.defaults)
    if example.presets:
        entry["presets"] = {name: dict(values) for name, values in example.presets.items()}
    return entry


def adopted_lora(*, title: str, family: str, name: str) -> dict[str, Any]:
    """The entry of a LoRA for models of `family`."""
    return {
        "title": title,
        "families": [family],
        "file": {"name": name},
        "licence": {"name": "unknown", "commercial": "unknown"},
    }


def takes_loras(family: str, catalogue: Catalogue) -> bool:
    """Whether the templates of all models of `family` use LoRAs; one that does not could not be drawn any more."""
    models = [model for model in catalogue.models.values() if model.family == family]
    templates = {
        catalogue.workflows[name].template for model in models for name in set(model.workflows.values())
    }
    return bool(templates) and all(
        any("loras" in text for _, text in catalogue.renderer.content(template)) for template in templates
    )


def free_name(stem: str, taken: Collection[str]) -> str:
    """An id like `stem` that is not among `taken`, which are in lower case."""
    base = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:80] or "model"
    name, number = base, 1
    while name.casefold() in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def main_role(model: Model) -> str:
    """The role of the file that makes the model what it is."""
    return next(role for role in MAIN_ROLES if role in model.files)


def _companion(
    role: str,
    file: File,
    example: Model,
    catalogue: Catalogue,
    is_present: Callable[[File], bool],
    stand_in: Callable[[File], File | None],
) -> File:
    workflows = set(example.workflows.values())
    others = [
        model.files[role]
        for model in catalogue.models.values()
        if role in model.files and set(model.workflows.values()) == workflows
    ]
    wanted = (file, *others)
    found = next((each for each in wanted if is_present(each)), None)
    return found or next((other for each in wanted if (other := stand_in(each))), file)


def _file(file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": file.name, "folder": file.folder}
    for key in ("url", "size", "sha256"):
        if (value := getattr(file, key)) is not None:
            entry[key] = value
    return entry
