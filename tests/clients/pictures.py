"""The files that the rows upload."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 256
HOLE = (64, 96, 160, 192)
"""Left, top, right, bottom: what the masks say is to be drawn anew. The rows know it too."""


def draw_pictures(folder: Path) -> Path:
    """Writes them all into `folder` and returns it."""
    folder.mkdir(parents=True)
    photo = _noise(SIDE)
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", quality=90)
    _noise(700).save(folder / "large.png")
    _alpha_mask().save(folder / "mask_alpha.png")
    _grey_mask().save(folder / "mask_grey.png")
    (folder / "no_picture.png").write_bytes(b"this is no picture")
    return folder


def _noise(side: int) -> Image.Image:
    """Every pixel differs from its neighbours, so that one that was drawn anew cannot pass for the old one."""
    return Image.frombytes("RGB", (side, side), random.Random(side).randbytes(side * side * 3))


def _alpha_mask() -> Image.Image:
    """OpenAI's way: transparent where something is to be drawn."""
    mask = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), HOLE)
    return mask


def _grey_mask() -> Image.Image:
    """GPUStack's way: white where something is to be drawn."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    left, top, right, bottom = HOLE
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask
