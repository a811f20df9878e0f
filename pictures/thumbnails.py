"""Small copies of stored pictures."""

from __future__ import annotations

import io

from PIL import Image

from pictures.decoding import pixels_of, read_image

_QUALITY = 80


def thumbnail(data: bytes, side: int) -> bytes:
    """A WebP of the picture whose longest side is at most `side` pixels, transparent where the picture is. Raises
    InvalidImage."""
    image = read_image(data)
    factor = min(1.0, side / max(image.size))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    with pixels_of(image, at_least=size) as pixels, io.BytesIO() as target:
        _smaller(pixels, size).save(target, "WEBP", quality=_QUALITY, method=2)
        return target.getvalue()


def _smaller(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    if pixels.mode != "RGBA":
        return pixels.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    # The colours of transparent pixels must not be mixed into those of the others.
    small = pixels.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small.convert("RGBA")
