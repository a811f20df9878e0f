"""Chooses the size of the picture, and the size that the graph draws: from the request, the image to redraw, or a
default, within the model's limits and rounded to its multiple."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from compiler.catalogue import Catalogue, Model
from compiler.openai_names import MAX_FITTED_SIDE, MIN_FITTED_SIDE, OPENAI_SIZES, names_no_model
from compiler.size import Size, SizeRule, has_ratio, nearest_size, round_size, size_error
from compiler.values import ImageRequest, Note, Origin, Shape
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
        return _requested_size(request.size, request, model)
    default = _default_size(model, catalogue)
    if request.shape is None and request.input_images:
        picture = next(iter(request.input_images.values()))
        size = nearest_size(picture.size.ratio, default.size.pixels, model.size)
        return _uncropped(size, "image")
    return default if request.shape is None else _size_of_shape(request.shape, default.size, model)


def check_frame(size: Size, model: Model, param: str) -> None:
    """Raises SizeNotAllowed if the model cannot draw pictures of `size` without scaling the image. `param`: the request
    field that makes the image so large, or leaves it so small."""
    rule = model.size
    error = size_error(size, rule) or size_error(_canvas(size, rule), rule)
    if error is not None:
        raise SizeNotAllowed(
            f"With `{param}` the picture has {size}: {error}. {_limits_text(model)}. Send "
            f"{'more' if size.width < rule.min.width or size.height < rule.min.height else 'less'} `{param}`, or an image "
            "of another size.",
            param=param, size=str(size), nearest=str(nearest_size(size.ratio, size.pixels, rule)), **_limits(rule),
        )  # fmt: skip


def _default_size(model: Model, catalogue: Catalogue) -> ChosenSize:
    default = catalogue.default_size
    if default is not None and size_error(default, model.size) is None:
        return _uncropped(round_size(default, model.size), "setting")
    return _uncropped(model.size.default, "model")


def _uncropped(size: Size, origin: Origin, *notes: Note) -> ChosenSize:
    return ChosenSize(size, size, origin, notes)


def _requested_size(size: Size, request: ImageRequest, model: Model) -> ChosenSize:
    """`size` as the model can draw it: rounded, or fitted into its limits if the client could not know these."""
    rule = model.size
    error = size_error(size, rule)
    if error is None:
        drawn = round_size(size, rule)
        why = f"{model.id} draws widths and heights that are multiples of {rule.multiple_of}"
    else:
        drawn = rule.default if size.pixels == 0 else nearest_size(size.ratio, size.pixels, rule)
        if not _may_be_fitted(size, request) or not has_ratio(drawn, size.ratio):
            raise _not_allowed(error, "size", size, drawn, model)
        why = f"{_limits_text(model)}; this is the nearest size of the same shape"
    notes = () if drawn == size else (Note("size", str(size), str(drawn), why),)
    return _uncropped(drawn, "request", *notes)


def _may_be_fitted(size: Size, request: ImageRequest) -> bool:
    """Whether the client could not choose the size by the model: it named none, or chose from OpenAI's sizes."""
    sides = (size.width, size.height)
    is_usual = all(MIN_FITTED_SIDE <= side <= MAX_FITTED_SIDE for side in sides)
    return size in OPENAI_SIZES or (is_usual and names_no_model(request.model))


def _size_of_shape(shape: Shape, base: Size, model: Model) -> ChosenSize:
    """A size of this shape; what `shape` leaves open is taken from `base`."""
    ratio, pixels = shape.ratio or base.ratio, shape.pixels or base.pixels
    size = nearest_size(ratio, pixels, model.size)
    if shape.ratio is not None and not has_ratio(size, ratio):
        error = f"{model.id} draws no size with the aspect ratio {shape.asked}"
        raise _not_allowed(error, shape.param, shape.asked, size, model)
    if shape.pixels is None or abs(math.log(size.pixels / pixels)) <= _AREA_TOLERANCE:
        return _uncropped(size, "request")
    why = f"{_limits_text(model)}; this is the nearest size"
    return _uncropped(size, "request", Note(shape.param, shape.asked, str(size), why))


_AREA_TOLERANCE = 0.1
"""Relative difference of two areas that needs no note: a name such as 1K does not stand for an exact number of pixels"""


def _not_allowed(error: str, param: str, asked: Size | str, nearest: Size, model: Model) -> SizeNotAllowed:
    return SizeNotAllowed(
        f"{error}. {_limits_text(model)}. The nearest size that it draws is {nearest}.",
        param=param, size=str(asked), nearest=str(nearest), **_limits(model.size),
    )  # fmt: skip


def _limits_text(model: Model) -> str:
    rule = model.size
    area = f" with at most {rule.max_pixels} pixels" if rule.max_pixels is not None else ""
    return f"{model.id} draws {rule.min} to {rule.max}{area}"


def _limits(rule: SizeRule) -> dict[str, Any]:
    return {
        "min": str(rule.min),
        "max": str(rule.max),
        "max_pixels": rule.max_pixels,
        "suggested": [str(size) for size in rule.suggested],
    }


# --- the image to redraw ---------------------------------------------------------------------------


def _size_for_image(request: ImageRequest, image_size: Size, model: Model) -> ChosenSize:
    if request.size is not None and (request.size != image_size or size_error(image_size, model.size)):
        return _with_crop(_requested_size(request.size, request, model), image_size)
    if request.size is None and request.shape is not None:
        return _with_crop(_size_of_shape(request.shape, image_size, model), image_size)
    rule = model.size
    canvas = _canvas(image_size, rule)
    if size_error(image_size, rule) is None and size_error(canvas, rule) is None:
        return ChosenSize(image_size, canvas, "image" if request.size is None else "request")
    size = nearest_size(image_size.ratio, image_size.pixels, rule)
    return _uncropped(size, "image", Note("image", str(image_size), str(size), _limits_text(model)))


def _with_crop(chosen: ChosenSize, image_size: Size) -> ChosenSize:
    """`chosen`, with a note that the image is cropped to it."""
    why = "the image is scaled to cover the requested size, and what does not fit is cropped"
    note = Note("image", str(image_size), str(chosen.size), why)
    return chosen if chosen.size == image_size else replace(chosen, notes=(*chosen.notes, note))


def _canvas(size: Size, rule: SizeRule) -> Size:
    """`size` with each side rounded up to the model's multiple."""
    return Size(_round_up(size.width, rule.multiple_of), _round_up(size.height, rule.multiple_of))


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
