"""Decodes pictures to what a viewer would show: rotated upright by EXIF, the first frame only, in 8-bit sRGB."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageCms

from errors import EaselError, InvalidImage
from pictures.opening import check_jpeg_segments, open_image
from pictures.pixels import has_transparent_pixels, to_8_bit

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_FORMATS = ("JPEG", "MPO")

_LARGE_PIXELS = 4_000_000
"""from this many pixels on, freed memory is returned to the system"""

_decoding = threading.BoundedSemaphore(2)
"""Limits memory: a hundred threads must not decode a hundred photos at the same time."""


@dataclass(frozen=True)
class InputImage:
    """A picture file whose header was read and whose pixels are not decoded yet. Width and height are those of the
    upright picture. `param` is the request field that it was sent in, for error messages."""

    data: bytes
    width: int
    height: int
    param: str = "image"
    orientation: int = 1
    """EXIF orientation of the pixels in the file"""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def read_image(data: bytes, *, param: str = "image") -> InputImage:
    """Read the header of `data`. Raises InvalidImage, also for more than 64 Mi pixels or 16,384 pixels a side."""
    if not data:
        raise InvalidImage("Invalid image: it is empty.", param=param)
    check_jpeg_segments(data, param)
    with open_image(data, param) as image:
        width, height = image.size
        orientation = _orientation(image)
    if orientation in _SIDEWAYS:
        width, height = height, width
    return InputImage(data, width, height, param, orientation)


@contextlib.contextmanager
def errors_of_image(number: int, of: int) -> Iterator[None]:
    """Errors about an image that the block raises say which of several it is. `number`: from 1."""
    try:
        yield
    except EaselError as error:
        if of == 1 or error.param != "image":
            raise
        which, rest = f"image {number} of {of}", error.message.removeprefix("Invalid image: ")
        start = f"Invalid {which}: " if rest != error.message else f"I{which[1:]}: "
        raise type(error)(f"{start}{rest}", param=error.param, **error.details) from error


def match_orientation(mask: InputImage, image: InputImage) -> InputImage:
    """`mask`, rotated like `image` if its size shows that it was made for the image's pixels before EXIF rotation."""
    is_sideways = image.orientation in _SIDEWAYS and mask.orientation == 1
    if is_sideways and mask.size == image.size[::-1] != image.size:
        return replace(mask, width=mask.height, height=mask.width, orientation=image.orientation)
    return mask


def has_transparency(image: InputImage) -> bool:
    """Whether any pixel is not opaque. Raises InvalidImage."""
    with open_image(image.data, image.param) as header:
        if not header.has_transparency_data:
            return False
    with pixels_of(image) as pixels:
        return has_transparent_pixels(pixels)


@contextlib.contextmanager
def pixels_of(image: InputImage, *, at_least: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """The picture as L, RGB or RGBA.

    `at_least` is the smallest size that the caller can use: a JPEG may be decoded at a reduced size of at least that.
    Raises InvalidImage. At most two pictures of a process are in such a block at a time. The peak memory of one is
    about 6 to 12 bytes a pixel (800 MB at the maximum of 64 Mi pixels), of a WebP 16 to 20 (1.3 GB).
    """
    with _decoding:
        try:
            yield _decoded(image, at_least)
        finally:
            if image.width * image.height > _LARGE_PIXELS:
                _release_memory()


def _release_memory() -> None:
    """Return freed memory to the system; the C library would keep it for the next large picture of the same thread."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _decoded(image: InputImage, at_least: tuple[int, int] | None) -> Image.Image:
    with open_image(image.data, image.param) as picture:
        orientation = image.orientation
        if at_least is not None and picture.format in _JPEG_FORMATS and picture.mode in ("L", "RGB"):
            picture.draft(picture.mode, at_least[::-1] if orientation in _SIDEWAYS else at_least)
        picture.load()
        pixels = _convert(picture)
        return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, if it cannot be read."""
    try:
        # Not PngImageFile.getexif, which decodes the pixels in order to read the chunks after them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1  # the pixels may still be valid
    return orientation if isinstance(orientation, int) else 1


def _convert(image: Image.Image) -> Image.Image:
    """The picture as L, RGB or RGBA, in sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        return _to_srgb(image, profile) or image.convert("RGB")
    if image.mode.startswith("I"):
        pixels = to_8_bit(image)
    else:
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
        pixels = image if image.mode == mode else image.convert(mode)
    return _to_srgb(pixels, profile) or pixels


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """The picture converted from its colour profile to sRGB; None if the profile is sRGB or unusable."""
    if not isinstance(profile, bytes):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # Converting sRGB to itself would change some levels by one.
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        mode = image.mode if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except Exception:
        return None  # damaged, or a profile for another colour mode
