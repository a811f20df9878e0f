"""Makes pictures that compress like photographs. Flat pictures are encoded unrealistically fast, and noise unrealistically
slowly."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageChops

MARGIN = 64
"""Pixels by which a photo is wider and higher than the pictures that are cut from it"""
_COARSEST, _ROUGHNESS, _COLOUR, _CONTRAST, _GRAIN = 4, 0.6, 0.35, 2.0, 14
_SEED = 20


def photo(side: int) -> Image.Image:
    """A square RGB picture of `side` pixels: soft shapes of every size with a little grain. The same for the same side."""
    source = random.Random(_SEED + side)
    grey = Image.new("L", (side, side), 128)
    cells = side // 2
    while cells >= _COARSEST:  # from fine to coarse, so that the fine shapes end up faint
        grey = Image.blend(_noise(source, "L", cells, side), grey, _ROUGHNESS)
        cells //= 2
    colour = _noise(source, "RGB", _COARSEST, side)
    picture = Image.blend(Image.merge("RGB", [grey] * 3), colour, _COLOUR)
    picture = picture.point([round((value - 128) * _CONTRAST + 128) for value in range(256)] * 3)
    grain = _noise(source, "RGB", side, side).point([value * _GRAIN // 255 for value in range(256)] * 3)
    return ImageChops.add(picture, grain)


def photo_jpeg(size: int) -> bytes:
    """The photo from which pictures of size x size are cut, as JPEG: a file so small that reading it costs little."""
    buffer = io.BytesIO()
    photo(size + MARGIN).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _noise(source: random.Random, mode: str, cells: int, side: int) -> Image.Image:
    """Random values in cells x cells squares, enlarged smoothly to side x side."""
    small = Image.frombytes(mode, (cells, cells), source.randbytes(cells * cells * len(mode)))
    return small.resize((side, side), Image.Resampling.BICUBIC)
