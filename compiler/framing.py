"""How large the picture is to be, and how large the graph draws it: the request's size, the image's own, or a default,
within the model's limits and on its multiples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from compiler.catalogue import Catalogue, Model
from compiler.size import Size, SizeRule, round_size, size_error
from compiler.values import ImageRequest, Note, Origin
from errors import SizeNotAllowed


@dataclass(frozen=True)
class Frame:
    """`size` is what the client gets. The graph draws `canvas`, which is `size` unless that is off the multiple."""

    size: Size
    canvas: Size
    origin: Origin
    notes: tuple[Note, ...] = ()


def frame_of(request: ImageRequest, model: Model, catalogue: Catalogue) -> Frame:
    """Raises SizeNotAllowed."""
    if request.source is not None:
        return _frame_of_image(request, request.source.size, model)
    if request.size is not None:
        return _asked(request.size, model)
    preferred = catalogue.default_size
    if preferred is not None and size_error(preferred, model.size) is None:
        return _whole(round_size(preferred, model.size), "setting")
    return _whole(model.size.default, "model")


def _whole(size: Size, origin: Origin, *notes: Note) -> Frame:
    return Frame(size, size, origin, notes)


def _asked(size: Size, model: Model) -> Frame:
    _check(size, model)
    rule = model.size
    rounded = round_size(size, rule)
    why = f"width and height of {model.id} are multiples of {rule.multiple_of}"
    notes = () if rounded == size else (Note("size", str(size), str(rounded), why),)
    return _whole(rounded, "request", *notes)


def _check(size: Size, model: Model) -> None:
    error = size_error(size, model.size)
    if error:
        raise SizeNotAllowed(
            f"{error}, the limit of {model.id}.", param="size", size=str(size), **_limits(model.size)
        )


def _limits(rule: SizeRule) -> dict[str, Any]:
    return {
        "min": str(rule.min),
        "max": str(rule.max),
        "max_pixels": rule.max_pixels,
        "suggested": [str(size) for size in rule.suggested],
    }


# --- of an image -----------------------------------------------------------------------------------


def _frame_of_image(request: ImageRequest, own: Size, model: Model) -> Frame:
    if request.size is not None and request.size != own:
        frame = _asked(request.size, model)
        why = "the image is scaled to cover the asked size, and what stands out is cut off"
        return Frame(
            frame.size, frame.canvas, "request", (*frame.notes, Note("image", str(own), str(frame.size), why))
        )
    if request.size is not None:
        _check(own, model)
    rule = model.size
    canvas = Size(_up(own.width, rule.multiple_of), _up(own.height, rule.multiple_of))
    if size_error(own, rule) is None and size_error(canvas, rule) is None:
        return Frame(own, canvas, "image" if request.size is None else "request")
    fitted = _fitted(own, model)
    why = f"{model.id} draws {rule.min} to {rule.max}"
    return _whole(fitted, "image", Note("image", str(own), str(fitted), why))


def _up(side: int, step: int) -> int:
    return -(-side // step) * step


def _fitted(own: Size, model: Model) -> Size:
    """The size that the model draws, of the image's shape as near as may be: what is too long for it will be cut."""
    rule = model.size
    largest = min(rule.max.width / own.width, rule.max.height / own.height)
    if rule.max_pixels is not None:
        largest = min(largest, math.sqrt(rule.max_pixels / own.pixels))
    smallest = max(rule.min.width / own.width, rule.min.height / own.height)
    scale = max(smallest, min(largest, 1.0))
    near = Size(
        _between(rule.min.width, round(own.width * scale), rule.max.width),
        _between(rule.min.height, round(own.height * scale), rule.max.height),
    )
    if size_error(near, rule) is not None:
        return rule.default
    return round_size(near, rule)


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
