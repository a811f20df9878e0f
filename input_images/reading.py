"""Bytes that claim to be a picture -> pixels, or InvalidImage with the reason. Only the bytes are believed: no name, no
content type; and of them only the header until its promises are known to be bearable."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# The two plugins that Pillow would not load by itself for a format that is named.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from errors import InvalidImage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""No other plugin of Pillow's is ever tried."""
MAX_PIXELS = 1 << 26
MAX_SIDE = 16_384
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

_decoding = threading.BoundedSemaphore(2)
"""A photo of 64 million pixels is 200 MB as pixels; a hundred threads must not have a hundred of them."""


@dataclass(frozen=True)
class InputImage:
    """A file whose header was believed; its pixels are not decoded yet. Width and height are those of the picture held
    upright. `param` is the field that it came in, for faults."""

    data: bytes
    width: int
    height: int
    param: str = "image"

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def read_image(data: bytes, *, param: str = "image") -> InputImage:
    """What the header of `data` promises. Raises InvalidImage, also for more than 64 Mi pixels."""
    if not data:
        raise InvalidImage("Invalid image: it is empty.", param=param)
    with _plainly(param), _opened(data, param) as image:
        width, height = image.size
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
    return InputImage(data, width, height, param)


def has_transparency(image: InputImage) -> bool:
    """Whether any pixel is not opaque. Raises InvalidImage."""
    with _decoding, _plainly(image.param), _opened(image.data, image.param) as opened:
        if not opened.has_transparency_data:
            return False
        return darkest(opened.convert("RGBA").getchannel("A")) < 255


@contextlib.contextmanager
def pixels_of(image: InputImage, *, at_least: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """The picture, upright, its first frame, as 8-bit sRGB with or without alpha: L, LA, RGB or RGBA.

    `at_least`: the size below which the picture may not be made while it is decoded; JPEGs are decoded smaller where
    that is enough. Raises InvalidImage. At most two pictures of a process are decoded at a time, each of at most 64 Mi
    pixels: 200 MB as RGB, and about as much again while it is turned or resized.
    """
    with _decoding, _plainly(image.param), _opened(image.data, image.param) as opened:
        if at_least is not None and opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB"):
            sideways = _orientation(opened) in _SIDEWAYS
            opened.draft(opened.mode, at_least[::-1] if sideways else at_least)
        orientation = _orientation(opened)
        opened.load()
        plain = _plain(opened)
        yield plain.transpose(_TURNS[orientation]) if orientation in _TURNS else plain


def darkest(channel: Image.Image) -> int:
    """The lowest level in a picture of one channel."""
    histogram = channel.histogram()
    return next(level for level, count in enumerate(histogram) if count)


def _orientation(image: Image.Image) -> int:
    """EXIF's way of saying how the camera was held; 1, upright, where that cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1  # the pixels may be fine all the same
    return found if isinstance(found, int) else 1


def _plain(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255 instead of scaling them.
        plain = image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    elif image.mode == "CMYK":
        return _as_srgb(image, profile) or image.convert("RGB")
    elif image.has_transparency_data:
        plain = image.convert("RGBA")
    else:
        plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
    return _as_srgb(plain, profile) or plain


def _as_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """The picture's colours by the profile inside it; None where that is sRGB anyway, or no use."""
    if not isinstance(profile, bytes) or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return None
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # A conversion from sRGB to itself would be off by one here and there.
        if "srgb" in ImageCms.getProfileDescription(known).lower():
            return None
        mode = image.mode if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, known, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


# --- distrust --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(data: bytes, param: str) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        # Sizes are judged here; other warnings are about odd metadata.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, param)
            yield image


def _check_size(size: tuple[int, int], param: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise InvalidImage(
            f"Invalid image: it claims to be {width}x{height} pixels large; at most {MAX_PIXELS} pixels and "
            f"{MAX_SIDE} a side are taken.",
            param=param,
        )
    if width < 1 or height < 1:
        raise InvalidImage("Invalid image: it has no pixels.", param=param)


@contextlib.contextmanager
def _plainly(param: str) -> Iterator[None]:
    """Whatever Pillow makes of hostile bytes is InvalidImage."""
    try:
        yield
    except InvalidImage:
        raise
    except Image.DecompressionBombError as fault:
        raise InvalidImage("Invalid image: it is larger than any that is taken.", param=param) from fault
    except UnidentifiedImageError as fault:
        known = "PNG, JPEG, WebP, GIF, BMP or AVIF"
        raise InvalidImage(f"Invalid image: it is no {known}.", param=param) from fault
    except MemoryError as fault:
        raise InvalidImage("Invalid image: there is not enough memory to decode it.", param=param) from fault
    except (
        OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, ArithmeticError,
        AssertionError, RuntimeError, NotImplementedError, struct.error, UnicodeError,
    ) as fault:  # fmt: skip
        raise InvalidImage(f"Invalid image: it is damaged ({_short(fault)}).", param=param) from fault


def _short(fault: Exception) -> str:
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text if len(text) <= 100 else text[:99] + "…"
