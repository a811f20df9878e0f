"""The files that the rows upload."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 256
MASKED_BOX = (64, 96, 160, 192)
"""What the masks mark for redrawing: left, top, right, bottom. The rows have the same constant."""


def draw_pictures(folder: Path) -> Path:
    """Writes all of them into `folder` and returns it."""
    folder.mkdir(parents=True)
    photo = _noise(SIDE)
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", quality=90)
    _noise(700).save(folder / "large.png")
    for colour in ("red", "blue"):
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{colour}.png")
    _alpha_mask().save(folder / "mask_alpha.png")
    _grey_mask().save(folder / "mask_grey.png")
    (folder / "no_picture.png").write_bytes(b"this is no picture")
    return folder


def _noise(side: int) -> Image.Image:
    """Random pixels, so that a redrawn pixel is unlikely to equal the old one."""
    return Image.frombytes("RGB", (side, side), random.Random(side).randbytes(side * side * 3))


def _alpha_mask() -> Image.Image:
    """OpenAI's convention: transparent where to draw."""
    mask = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), MASKED_BOX)
    return mask


def _grey_mask() -> Image.Image:
    """GPUStack's convention: white where to draw."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    left, top, right, bottom = MASKED_BOX
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask
