"""Picture sizes in pixels, and the sizes that a model can draw."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Size:
    """Width and height of a picture in pixels."""

    width: int
    height: int

    _FORM = re.compile(r"\s*(\d{1,5})\s*[xX×*]\s*(\d{1,5})\s*", re.ASCII)

    @classmethod
    def parse(cls, text: str) -> Size:
        """Parse text such as `1024x768`. Raises ValueError if it has another form."""
        match = cls._FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not WIDTHxHEIGHT, such as 1024x1024")
        return cls(int(match[1]), int(match[2]))

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def ratio(self) -> float:
        """Width divided by height"""
        return self.width / self.height if self.height else math.inf

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class SizeRule:
    """The sizes that a model can draw."""

    default: Size
    multiple_of: int
    min: Size
    max: Size
    max_pixels: int | None = None
    suggested: tuple[Size, ...] = ()


def size_error(size: Size, rule: SizeRule) -> str | None:
    """Why `size` is outside the limits of `rule`, or None. Does not check `multiple_of`."""
    if size.width < rule.min.width or size.height < rule.min.height:
        return f"{size} is smaller than {rule.min}"
    if size.width > rule.max.width or size.height > rule.max.height:
        return f"{size} is larger than {rule.max}"
    if rule.max_pixels is not None and size.pixels > rule.max_pixels:
        return f"{size} has more than {rule.max_pixels} pixels"
    return None


def round_size(size: Size, rule: SizeRule) -> Size:
    """The nearest size within the limits of `rule` whose sides are multiples of `multiple_of`."""
    nearest = Size(
        _nearest(size.width, rule.multiple_of, rule.min.width, rule.max.width),
        _nearest(size.height, rule.multiple_of, rule.min.height, rule.max.height),
    )
    if size_error(nearest, rule) is None:
        return nearest
    step = rule.multiple_of
    return Size(size.width // step * step, size.height // step * step)


def _nearest(side: int, step: int, low: int, high: int) -> int:
    rounded = (side + step // 2) // step * step
    if rounded > high:
        rounded -= step
    return rounded if rounded >= low else rounded + step


SHAPE_TOLERANCE = 0.05
"""Relative difference of two aspect ratios that count as the same: 1344x768 is used for 16:9, 1024x680 for 3:2"""


def has_ratio(size: Size, ratio: float) -> bool:
    """Whether `size` has the aspect ratio `ratio` (width divided by height), apart from rounding."""
    return abs(math.log(size.ratio / ratio)) <= SHAPE_TOLERANCE if size.pixels else False


def nearest_size(ratio: float, pixels: float, rule: SizeRule) -> Size:
    """The size within the limits of `rule` whose aspect ratio is nearest to `ratio` (width divided by height), and of
    those the one whose area is nearest to `pixels`."""
    limits = rule.max.pixels if rule.max_pixels is None else rule.max_pixels
    height = math.sqrt(min(pixels, limits) / ratio)
    largest = min(rule.max.width / ratio, rule.max.height)
    smallest = max(rule.min.width / ratio, rule.min.height)
    # For a ratio that no size has, `smallest` is above `largest`: each side is then brought within its own limits.
    height = max(min(height, largest), smallest)
    widths = _multiples_near(height * ratio, rule.multiple_of, rule.min.width, rule.max.width)
    heights = _multiples_near(height, rule.multiple_of, rule.min.height, rule.max.height)
    sizes = [Size(*sides) for sides in itertools.product(widths, heights)]
    allowed = [size for size in sizes if size_error(size, rule) is None]
    if not allowed:
        return rule.default
    target = height * height * ratio
    return min(
        allowed, key=lambda size: (round(abs(math.log(size.ratio / ratio)), 6), abs(size.pixels - target))
    )


def _multiples_near(side: float, step: int, low: int, high: int) -> set[int]:
    """The multiples of `step` on both sides of `side`, between `low` and `high`."""
    lowest, highest = -(-low // step) * step, high // step * step
    below = math.floor(side / step + 1e-9) * step
    return {max(lowest, min(multiple, highest)) for multiple in (below, below + step)}
