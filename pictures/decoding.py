"""Bytes that claim to be a picture -> what a person sees in it: upright, the first frame, in 8-bit sRGB."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageCms

from errors import InvalidImage
from pictures.opening import check_segments, opened

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG = ("JPEG", "MPO")

_LARGE = 4_000_000
"""pixels"""

_decoding = threading.BoundedSemaphore(2)
"""A hundred threads must not have a hundred photos in memory."""


@dataclass(frozen=True)
class InputImage:
    """A file whose header was believed; its pixels are not decoded yet. Width and height are those of the picture held
    upright. `param` is the field that it came in, for faults."""

    data: bytes
    width: int
    height: int
    param: str = "image"
    orientation: int = 1
    """How the file's pixels lie, in EXIF's numbers"""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def read_image(data: bytes, *, param: str = "image") -> InputImage:
    """What the header of `data` promises. Raises InvalidImage, also for more than 64 Mi pixels or 16,384 a side."""
    if not data:
        raise InvalidImage("Invalid image: it is empty.", param=param)
    check_segments(data, param)
    with opened(data, param) as image:
        width, height = image.size
        orientation = _orientation(image)
    if orientation in _SIDEWAYS:
        width, height = height, width
    return InputImage(data, width, height, param, orientation)


def turned_like(mask: InputImage, image: InputImage) -> InputImage:
    """`mask`, turned as `image` is if it was made for the image's pixels as they lie in the file."""
    lies_sideways = image.orientation in _SIDEWAYS and mask.orientation == 1
    if lies_sideways and mask.size == image.size[::-1] != image.size:
        return replace(mask, width=mask.height, height=mask.width, orientation=image.orientation)
    return mask


def has_transparency(image: InputImage) -> bool:
    """Whether any pixel is not opaque. Raises InvalidImage."""
    with opened(image.data, image.param) as header:
        if not header.has_transparency_data:
            return False
    with pixels_of(image) as pixels:
        return "A" in pixels.getbands() and darkest(pixels.getchannel("A")) < 255


@contextlib.contextmanager
def pixels_of(image: InputImage, *, at_least: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """The picture as L, RGB or RGBA.

    `at_least`: the size below which the picture may not be made while it is decoded; JPEGs are decoded smaller where
    that is enough. Raises InvalidImage. At most two pictures of a process are in such a block at a time. The peak of one
    is about 6 to 12 bytes a pixel (800 MB at the 64 Mi pixels that are allowed), of a WebP 16 to 20 (1.3 GB).
    """
    with _decoding:
        try:
            yield _decoded(image, at_least)
        finally:
            if image.width * image.height > _LARGE:
                _give_memory_back()


def _give_memory_back() -> None:
    """The C library would keep what a thread once had for that thread's next large picture."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def darkest(channel: Image.Image) -> int:
    """The lowest level in a picture of one channel."""
    histogram = channel.histogram()
    return next(level for level, count in enumerate(histogram) if count)


def _decoded(image: InputImage, at_least: tuple[int, int] | None) -> Image.Image:
    with opened(image.data, image.param) as picture:
        orientation = image.orientation
        if at_least is not None and picture.format in _JPEG and picture.mode in ("L", "RGB"):
            picture.draft(picture.mode, at_least[::-1] if orientation in _SIDEWAYS else at_least)
        picture.load()
        plain = _plain(picture)
        return plain.transpose(_TURNS[orientation]) if orientation in _TURNS else plain


def _orientation(image: Image.Image) -> int:
    """EXIF's way of saying how the camera was held; 1, upright, where that cannot be read."""
    try:
        # Not the PNG's own method: to look also behind the pixels, that one decodes them.
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:
        return 1  # the pixels may be fine all the same
    return found if isinstance(found, int) else 1


def _plain(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255 instead of scaling them.
        plain = image.point(lambda level: level * (1 / 257) + 0.5).convert("L")
    elif image.mode == "CMYK":
        return _as_srgb(image, profile) or image.convert("RGB")
    else:
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
        plain = image if image.mode == mode else image.convert(mode)
    return _as_srgb(plain, profile) or plain


def _as_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """The picture's colours by the profile inside it; None where that is sRGB anyway, or no use."""
    if not isinstance(profile, bytes):
        return None
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # A conversion from sRGB to itself would be off by one here and there.
        if "srgb" in ImageCms.getProfileDescription(known).lower():
            return None
        mode = image.mode if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, known, ImageCms.createProfile("sRGB"), outputMode=mode)
    except Exception:
        return None  # damaged, or made for another kind of picture
