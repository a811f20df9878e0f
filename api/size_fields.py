"""Reads the size of the picture from the fields in which clients send it: `size`, `width` and `height`, `aspect_ratio`,
`image_size` and `megapixels`. Pure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from compiler import Shape, Size
from compiler.size import has_ratio
from errors import SizeNotAllowed, shorten
from schemas.explain import given_value

_AUTO = ("auto", "default", "match_input_image")
_RATIO = re.compile(r"\s*(\d{1,5}(?:\.\d{1,5})?)\s*[:/]\s*(\d{1,5}(?:\.\d{1,5})?)\s*", re.ASCII)
_NAMED_RATIOS = {"square": 1.0, "landscape": 3 / 2, "portrait": 2 / 3}
"""The shapes of OpenAI's 1024x1024, 1536x1024 and 1024x1536"""
_RESOLUTION = re.compile(r"\s*(\d{1,2}(?:\.\d{1,2})?)\s*k\s*", re.ASCII | re.IGNORECASE)
_NAMED_SIZES = {
    "square_hd": "1024x1024",
    "portrait_4_3": "768x1024",
    "portrait_16_9": "576x1024",
    "landscape_4_3": "1024x768",
    "landscape_16_9": "1024x576",
}
"""fal.ai's names"""
_MAX_RATIO = 100
_SAME_AREA_FACTOR = 2
"""How much more or less than its area a size may have and still agree with a name such as 1K: 1536x1024 is one"""


def read_size(fields: Mapping[str, Any], image: Size | None) -> tuple[Size | None, Shape | None]:
    """The size that the fields request, or its shape if they do not give it in full; (None, None) if they leave it open.

    `image`: the size of the image to redraw. Raises SizeNotAllowed for values that are not valid, and if two fields
    contradict each other.
    """
    exact: dict[str, Size] = {}
    ratios: dict[str, float] = {}
    areas: dict[str, int] = {}
    for param in ("size", "image_size"):
        value = _parse(param, fields.get(param))
        if isinstance(value, Size):
            exact[param] = value
        elif isinstance(value, float):
            ratios[param] = value
        elif isinstance(value, int):
            areas[param] = value
    if "megapixels" in fields:
        areas["megapixels"] = round(fields["megapixels"] * 1024 * 1024)
    if "aspect_ratio" in fields and (ratio := _ratio_of(fields["aspect_ratio"])) is not None:
        ratios["aspect_ratio"] = ratio
    sides = _sides(fields, next(iter(exact.values()), None), next(iter(ratios.values()), None), image)
    if sides is not None:
        exact["width" if "width" in fields else "height"] = sides
    _refuse_contradictions(fields, exact, ratios, areas)
    if exact:
        return next(iter(exact.values())), None
    if not ratios and not areas:
        return None, None
    # The area is what a model may not have; without one, the ratio.
    param = next(iter(areas or ratios))
    return None, Shape(
        next(iter(ratios.values()), None),
        next(iter(areas.values()), None),
        param,
        shorten(str(fields[param])),
    )


def _parse(param: str, value: Any) -> Size | float | int | None:
    """A size, a ratio (float), an area in pixels (int), or None."""
    if isinstance(value, Mapping):
        width, height = (value.get(name) for name in ("width", "height"))
        if width is None or height is None or not _is_side(width) or not _is_side(height):
            raise _invalid(param, value, 'an object has `width` and `height`: {"width": 1024, "height": 768}')
        return Size(int(width), int(height))
    text = str(value).strip().lower() if value is not None else ""
    if text in ("", *_AUTO):
        return None
    if text in _NAMED_SIZES:
        return Size.parse(_NAMED_SIZES[text])
    if match := _RESOLUTION.fullmatch(text):
        side = round(float(match[1]) * 1024)
        if side == 0:
            raise _invalid(param, value, "write 1K, 2K or WIDTHxHEIGHT")
        return side * side
    if text in _NAMED_RATIOS or _RATIO.fullmatch(text):
        return _ratio_of(text, param)
    try:
        return Size.parse(text)
    except ValueError as error:
        more = "" if param == "size" else ", an area such as 1K or 2K"
        raise _invalid(param, value, f"write WIDTHxHEIGHT, such as 1024x1024{more}, or auto") from error


def _is_side(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 1 <= value < 100_000
        and value % 1 == 0
    )


def _ratio_of(value: Any, param: str = "aspect_ratio") -> float | None:
    """Width divided by height; None for `auto`."""
    text = str(value).strip().lower()
    if text in ("", *_AUTO):
        return None
    if text in _NAMED_RATIOS:
        return _NAMED_RATIOS[text]
    match = _RATIO.fullmatch(text)
    width, height = (float(match[1]), float(match[2])) if match else (_number(text), 1.0)
    if not width or not height or not 1 / _MAX_RATIO <= width / height <= _MAX_RATIO:
        raise _invalid(param, value, "write WIDTH:HEIGHT, such as 16:9")
    return width / height


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _sides(
    fields: Mapping[str, Any], exact: Size | None, ratio: float | None, image: Size | None
) -> Size | None:
    """The size that `width` and `height` give. One of them is enough if the ratio is known."""
    width, height = fields.get("width"), fields.get("height")
    if width is None and height is None:
        return None
    if width is not None and height is not None:
        return Size(int(width), int(height))
    ratio = (exact.ratio if exact and exact.pixels else None) or ratio or (image.ratio if image else None)
    if ratio is None:
        given, missing = ("width", "height") if height is None else ("height", "width")
        raise SizeNotAllowed(f"`{given}` is not enough: send `{missing}` or `aspect_ratio` too.", param=given)
    if height is None:
        return Size(int(fields["width"]), max(1, round(fields["width"] / ratio)))
    return Size(max(1, round(height * ratio)), int(height))


def _refuse_contradictions(
    fields: Mapping[str, Any],
    exact: Mapping[str, Size],
    ratios: Mapping[str, float],
    areas: Mapping[str, int],
) -> None:
    for values in (exact, ratios, areas):
        for one, other in itertools.pairwise(values):
            if values[one] != values[other]:
                raise _contradiction(fields, one, other)
    for one, size in exact.items():
        for other, ratio in ratios.items():
            if not has_ratio(size, ratio):
                raise _contradiction(fields, one, other)
        for other, area in areas.items():
            if not 1 / _SAME_AREA_FACTOR <= size.pixels / area <= _SAME_AREA_FACTOR:
                raise _contradiction(fields, one, other)


def _contradiction(fields: Mapping[str, Any], one: str, other: str) -> SizeNotAllowed:
    return SizeNotAllowed(
        f"{_told(fields, one)} and {_told(fields, other)} contradict each other; send only one of them.",
        param=other,
    )


def _told(fields: Mapping[str, Any], param: str) -> str:
    names = (
        [name for name in ("width", "height") if name in fields] if param in ("width", "height") else [param]
    )
    return ", ".join(f"`{name}` {given_value(fields[name])}" for name in names)


def _invalid(param: str, value: Any, rule: str) -> SizeNotAllowed:
    return SizeNotAllowed(f"`{param}` is {given_value(value)}; {rule}.", param=param)
