"""Outpainting: reads how far an image is to be extended, and prepares the image and the mask that draw the frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from api.field_values import parse_json_field
from api.request_images import RequestImages
from api.unsupported_fields import is_off
from compiler import ImageRequest, Model, Size, check_frame
from compiler.values import Note
from errors import InvalidValue, SizeNotAllowed
from generation import Pictures
from pictures import Sides, extend, masks_frame, transparent_frame, without_frame
from schemas.explain import given_value

FIELD = "outpaint"
_SIDE_NAMES: Mapping[str, str] = {
    "left": "left",
    "right": "right",
    "top": "top",
    "up": "top",
    "bottom": "bottom",
    "down": "bottom",
}
"""What a side may be called -> its name"""
FLAT_FIELDS: Mapping[str, str] = {f"expand_{name}": name for name in _SIDE_NAMES}
"""fal.ai's fields, one for each side"""
_MIN_FRAME = 1 / 16
"""Of the width or the height"""
_FORM = (
    'pixels for all sides, or an object such as {"left": 256, "right": 256}, with left, right, top and bottom'
)


@dataclass(frozen=True)
class Outpainting:
    """The images of a request that extends the first of them. `is_requested`: by a field, so that its sides are exact"""

    images: RequestImages
    sides: Sides
    is_requested: bool

    @property
    def facts(self) -> dict[str, int]:
        """What the response reports"""
        return asdict(self.sides)


def take_sides(fields: dict[str, Any], inputs: Mapping[str, Any]) -> Sides | None:
    """Remove the fields for outpainting from `fields` (in place), and return how far the image is to be extended; None if
    it is not. `inputs`: of the model's workflows, which keep their fields. Raises InvalidValue."""
    sides: dict[str, int] = {}
    flat = {name: fields.pop(name) for name in FLAT_FIELDS if name in fields and name not in inputs}
    for name, value in flat.items():
        if not is_off(value):
            _set(sides, FLAT_FIELDS[name], value, name)
    value = fields.pop(FIELD, None) if FIELD not in inputs else None
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        value = parse_json_field(FIELD, value)
    if isinstance(value, Mapping):
        for name, number in value.items():
            if name not in _SIDE_NAMES:
                raise InvalidValue(f"`{FIELD}` has {given_value(name)}; it must be {_FORM}.", param=FIELD)
            if not is_off(number):
                _set(sides, name, number, FIELD)
    elif not is_off(value):
        for name in ("left", "top", "right", "bottom"):
            _set(sides, name, value, FIELD)
    return Sides(**sides) if sides else None


def _set(sides: dict[str, int], name: str, value: Any, field: str) -> None:
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not is_whole or not 0 < value < 100_000:
        form = _FORM if field == FIELD else "a whole number of pixels"
        raise InvalidValue(f"`{field}` is {given_value(value)}; it must be {form}.", param=field)
    side = _SIDE_NAMES[name]
    if sides.setdefault(side, int(value)) != value:
        raise InvalidValue(
            f"The request extends the image at the {side} by both {sides[side]} and {given_value(value)} pixels; send one "
            "number.",
            param=field,
        )


def outpaint(images: RequestImages, sides: Sides | None, model: Model) -> Outpainting | None:
    """The images with the first one extended by `sides`, and the mask that draws the frame. Without `sides`, the
    transparent frame around an image is one to draw, if the model draws masks; None if there is neither.

    Raises SizeNotAllowed if the model cannot draw the frame, InvalidValue for a markup, InvalidImage.
    """
    pictures = images.pictures
    if sides is not None:
        if pictures.markup is not None:
            raise InvalidValue(
                f"The request has `{FIELD}` and a `markup`; what is drawn over the image would stay in the picture. Send "
                "one of them.",
                param="markup",
            )
        check_frame(Size(*sides.around(pictures.image.size)), model, FIELD)
        return Outpainting(replace(images, pictures=_extended(pictures, sides)), sides, True)
    if pictures.markup is not None or "inpaint" not in model.workflows:
        return None
    frame = transparent_frame(pictures.image)
    if frame is None:
        return None
    inner = replace(pictures, image=without_frame(pictures.image, frame), mask=None)
    extended = _extended(inner, frame)
    if pictures.mask is not None:
        # Outside the mask the image would show what only helps the drawing.
        if not masks_frame(pictures.mask, pictures.image, frame):
            return None
        extended = replace(extended, mask=pictures.mask)
        return Outpainting(replace(images, pictures=extended), frame, False)
    if not _is_meant(frame, pictures.image.size):
        return None
    why = "the image is opaque in one rectangle only: the transparent frame around it is drawn, and the rest is kept"
    note = Note("image", "a transparent frame", f"{FIELD} {asdict(frame)}", why)
    return Outpainting(RequestImages(extended, (*images.notes, note)), frame, False)


def _is_meant(frame: Sides, size: tuple[int, int]) -> bool:
    """Whether a transparent frame is wide enough to be one to draw: editors leave thin ones around a picture."""
    across, down = frame.left + frame.right, frame.top + frame.bottom
    return max(across / size[0], down / size[1]) >= _MIN_FRAME


def _extended(pictures: Pictures, sides: Sides) -> Pictures:
    image, mask = extend(pictures.image, sides, pictures.mask)
    return replace(pictures, image=image, mask=mask)


def check_requested_size(request: ImageRequest, images: RequestImages) -> None:
    """Raises SizeNotAllowed if the request has a size besides `outpaint` that is not the one that follows from it."""
    image = images.pictures.image
    size = Size(image.width, image.height)
    if request.shape is None and request.size in (None, size):
        return
    param, asked = (
        ("size", str(request.size)) if request.shape is None else (request.shape.param, request.shape.asked)
    )
    raise SizeNotAllowed(
        f"`{param}` is {asked}, but the image with `{FIELD}` has {size}. Leave `{param}` out: the image is not scaled.",
        param=param,
        size=asked,
        nearest=str(size),
    )
