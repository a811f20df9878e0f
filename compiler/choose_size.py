"""Chooses the size of the picture, and the size that the graph draws: from the request, the image to redraw, or a
default, within the model's limits and rounded to its multiple."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from compiler.catalogue import Catalogue, Model
from compiler.size import Size, SizeRule, round_size, size_error
from compiler.values import ImageRequest, Note, Origin
from errors import SizeNotAllowed


@dataclass(frozen=True)
class ChosenSize:
    """`size` is the size of the picture. `canvas` is what the graph draws: `size` with each side rounded up to the
    model's multiple."""

    size: Size
    canvas: Size
    origin: Origin
    notes: tuple[Note, ...] = ()


def choose_size(request: ImageRequest, model: Model, catalogue: Catalogue) -> ChosenSize:
    """Choose the size for `request`. Raises SizeNotAllowed."""
    if request.source is not None:
        return _size_for_image(request, request.source.size, model)
    if request.size is not None:
        return _requested_size(request.size, model)
    default = catalogue.default_size
    if default is not None and size_error(default, model.size) is None:
        return _uncropped(round_size(default, model.size), "setting")
    return _uncropped(model.size.default, "model")


def _uncropped(size: Size, origin: Origin, *notes: Note) -> ChosenSize:
    return ChosenSize(size, size, origin, notes)


def _requested_size(size: Size, model: Model) -> ChosenSize:
    _check(size, model)
    rule = model.size
    rounded = round_size(size, rule)
    why = f"{model.id} draws widths and heights that are multiples of {rule.multiple_of}"
    notes = () if rounded == size else (Note("size", str(size), str(rounded), why),)
    return _uncropped(rounded, "request", *notes)


def _check(size: Size, model: Model) -> None:
    error = size_error(size, model.size)
    if error:
        raise SizeNotAllowed(
            f"{error}, which is the limit of {model.id}.", param="size", size=str(size), **_limits(model.size)
        )


def _limits(rule: SizeRule) -> dict[str, Any]:
    return {
        "min": str(rule.min),
        "max": str(rule.max),
        "max_pixels": rule.max_pixels,
        "suggested": [str(size) for size in rule.suggested],
    }


# --- the image to redraw ---------------------------------------------------------------------------


def _size_for_image(request: ImageRequest, image_size: Size, model: Model) -> ChosenSize:
    if request.size is not None and request.size != image_size:
        chosen = _requested_size(request.size, model)
        why = "the image is scaled to cover the requested size, and what does not fit is cropped"
        note = Note("image", str(image_size), str(chosen.size), why)
        return ChosenSize(chosen.size, chosen.canvas, "request", (*chosen.notes, note))
    if request.size is not None:
        _check(image_size, model)
    rule = model.size
    canvas = Size(
        _round_up(image_size.width, rule.multiple_of), _round_up(image_size.height, rule.multiple_of)
    )
    if size_error(image_size, rule) is None and size_error(canvas, rule) is None:
        return ChosenSize(image_size, canvas, "image" if request.size is None else "request")
    size = _nearest_size(image_size, model)
    why = f"{model.id} draws {rule.min} to {rule.max}"
    return _uncropped(size, "image", Note("image", str(image_size), str(size), why))


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step


def _nearest_size(image_size: Size, model: Model) -> Size:
    """The size that the model can draw whose shape is closest to the image's. What does not fit will be cropped."""
    rule = model.size
    largest = min(rule.max.width / image_size.width, rule.max.height / image_size.height)
    if rule.max_pixels is not None:
        largest = min(largest, math.sqrt(rule.max_pixels / image_size.pixels))
    smallest = max(rule.min.width / image_size.width, rule.min.height / image_size.height)
    scale = max(smallest, min(largest, 1.0))
    size = Size(
        _clamp(rule.min.width, round(image_size.width * scale), rule.max.width),
        _clamp(rule.min.height, round(image_size.height * scale), rule.max.height),
    )
    if size_error(size, rule) is not None:
        return rule.default
    return round_size(size, rule)


def _clamp(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
