"""Small copies of stored pictures, and what their files say about themselves."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from pictures.decoding import pixels_of, read_image
from pictures.opening import open_image

_EXIF_IFD_TAG, _USER_COMMENT_TAG = 0x8769, 0x9286
_QUALITY = 80


@dataclass(frozen=True)
class PictureHead:
    """What the head of a picture's file says. `parameters`: the text that `with_texts` or `encode` wrote into it, None if
    there is none."""

    width: int
    height: int
    parameters: str | None


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


def read_head(data: bytes) -> PictureHead:
    """The head of a picture that this server made. Raises InvalidImage."""
    with open_image(data, "image") as image:
        text = image.info.get("parameters")
        return PictureHead(*image.size, text if isinstance(text, str) else _user_comment(image))


def _user_comment(image: Image.Image) -> str | None:
    if image.format == "PNG":
        return None  # Pillow would decode the pixels to look for EXIF after them
    comment = image.getexif().get_ifd(_EXIF_IFD_TAG).get(_USER_COMMENT_TAG)
    if not isinstance(comment, bytes) or not comment.startswith(b"UNICODE\0"):
        return None
    return comment[8:].decode("utf-16-be", "replace")
