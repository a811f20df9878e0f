"""Says once, at the start, that a ComfyUI has models and none of the catalogue's, which `easel adopt-models` can use."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from compiler import Catalogue
from deadline import time_limit
from engine import Engine
from generation.generator import Generator

log = logging.getLogger("easel.generation")

_TIMEOUT_S = 10.0
_LOADERS = {
    "CheckpointLoaderSimple": ("checkpoints", "ckpt_name"),
    "UNETLoader": ("diffusion_models", "unet_name"),
}


def announce_unused_files(generator: Generator) -> None:
    """Log one line if the engine is a ComfyUI that has checkpoints or diffusion models, but none of the catalogue. Never
    raises."""
    try:
        with time_limit(_TIMEOUT_S):
            engine = generator.engine()
            names = [] if engine.is_sketch else unused_files(engine, generator.catalogue())
    except Exception as error:
        log.debug("could not look at the files of the engine: %s", error)
        return
    if names:
        log.info(
            "ComfyUI has %d model files, such as %r, and none of the catalogue: `easel adopt-models` makes models of them",
            *(len(names), names[0]),
        )


def unused_files(engine: Engine, catalogue: Catalogue) -> list[str]:
    """The checkpoints and diffusion models that `engine` lists; empty if one of them is in the catalogue."""
    entries = engine.signatures(_LOADERS)
    found: list[str] = []
    for node, (folder, name) in _LOADERS.items():
        known = {_base(each) for each in catalogue.files.get(folder, ())}
        listed = list(listed_choices(entries.get(node), name))
        if any(_base(each) in known for each in listed):
            return []
        found += listed
    return found


def listed_choices(entry: Any, name: str) -> Iterator[str]:
    """The choices of an input in an entry of `/object_info`, in either of the forms that ComfyUI has."""
    groups = entry.get("input") if isinstance(entry, Mapping) else None
    required = groups.get("required") if isinstance(groups, Mapping) else None
    spec = required.get(name) if isinstance(required, Mapping) else None
    if not isinstance(spec, list) or not spec:
        return
    options = spec[0]
    if not isinstance(options, list):
        options = spec[1].get("options") if len(spec) > 1 and isinstance(spec[1], Mapping) else None
    yield from (each for each in options or () if isinstance(each, str))


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]
