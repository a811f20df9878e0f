"""What the image store's index is told of a picture: from its request and plan, or from its file alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler import Note, Plan, Size
from errors import InvalidImage
from generation.notes import note_entries
from generation.values import OutputOptions
from image_store import ImageFacts
from pictures import read_head

_NOT_REQUESTED = frozenset(("task", "width", "height", "image", "images", "mask", "crop", "loras", "files"))
"""Variables of templates that are no fields of a request, or not in this form"""


@dataclass(frozen=True)
class RequestOrigin:
    """What the index stores of a request beside its plan. `owner`: as `Caller.owner_hash`. `outpaint`: by how much the image
    was extended. `sources`: the names of stored images that it has. `adjusted`, `ignored`: its notes in addition to those of
    the plan."""

    owner: str = ""
    outpaint: Mapping[str, int] | None = None
    sources: tuple[str, ...] = ()
    adjusted: tuple[Note, ...] = field(default=(), repr=False)
    ignored: tuple[Note, ...] = field(default=(), repr=False)


def facts_of(
    plan: Plan,
    origin: RequestOrigin,
    output: OutputOptions,
    *,
    size: Size,
    seed: int | None,
    index: int,
    batch: int,
    request_id: str,
    adjusted: tuple[Note, ...],
    engine: str,
) -> ImageFacts:
    """`index`: the position of the picture among the `batch` that have its seed. `adjusted`: what became known when it was
    drawn. `engine`: the one that drew it, or the host; empty if there is only one."""
    values = {name: planned.value for name, planned in plan.values.items()}
    return ImageFacts(
        width=size.width,
        height=size.height,
        model=plan.model,
        task=plan.task,
        prompt=values.get("prompt"),
        negative_prompt=values.get("negative_prompt"),
        seed=seed,
        settings=_settings(plan, origin, output, seed, batch),
        adjusted=tuple(note_entries((*origin.adjusted, *plan.adjusted, *adjusted))),
        ignored=tuple(note_entries((*origin.ignored, *plan.ignored))),
        request_id=request_id or None,
        index=index,
        sources=origin.sources,
        owner=origin.owner,
        engine=engine or None,
    )


def _settings(
    plan: Plan, origin: RequestOrigin, output: OutputOptions, seed: int | None, batch: int
) -> dict[str, Any]:
    """The fields of a request for the same picture, under the names of `image_request.schema.json`. Every default is
    written out, because it may change."""
    hidden = {*_NOT_REQUESTED, *plan.input_images}
    settings: dict[str, Any] = {"model": plan.model}
    settings |= {
        name: planned.value
        for name, planned in plan.values.items()
        if name not in hidden and planned.value is not None
    }
    if loras := plan.values["loras"].value:
        settings["lora"] = [{"name": lora["id"], "strength": lora["strength"]} for lora in loras]
    if origin.outpaint:
        settings["outpaint"] = dict(origin.outpaint)  # it decides about the size
    else:
        settings["size"] = str(plan.size)
    if seed is not None:
        settings["seed"] = seed
    if batch > 1:
        settings["n"] = batch
    settings |= plan.stages
    if output.is_opaque:
        settings["background"] = "opaque"
    if output.format != "png":
        settings["output_format"] = output.format
        if output.quality is not None:
            settings["output_compression"] = output.quality
    return settings


# --- from a file -----------------------------------------------------------------------------------

_LAST_LINE = re.compile(r"(?:.*, )?Size: \d+x\d+, Model: (?P<model>\S+)")
_SEED = re.compile(r"(?:^|, )Seed: (\d{1,20})(?:,|$)")
_NEGATIVE = "\nNegative prompt: "
_BUFFER_BYTES = 8192


def facts_of_file(path: Path) -> ImageFacts:
    """What the file of a stored picture says: its size, and what `parameters_text` wrote into it, if the setting
    `images.metadata` lets pictures have that. Reads only the head of the file: a store may have thousands. Raises
    OSError."""
    # O_NONBLOCK, because opening a pipe that has an image's name would block the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with os.fdopen(descriptor, "rb", _BUFFER_BYTES) as file:
            head = read_head(file)
    except InvalidImage:
        return ImageFacts()
    facts = ImageFacts(width=head.width, height=head.height)
    return facts if head.parameters is None else _with_parameters(facts, head.parameters)


def _with_parameters(facts: ImageFacts, text: str) -> ImageFacts:
    """The prompt may have lines of its own, so the text is read from its end."""
    prompts, newline, last = text.rpartition("\n")
    match = _LAST_LINE.fullmatch(last)
    if not newline or match is None:
        return facts  # it was cut off, or another program wrote it
    prompt, _, negative = prompts.partition(_NEGATIVE)
    seed = _SEED.search(last)
    return ImageFacts(
        width=facts.width,
        height=facts.height,
        model=match["model"],
        prompt=prompt,
        negative_prompt=negative or None,
        seed=int(seed[1]) if seed else None,
    )
