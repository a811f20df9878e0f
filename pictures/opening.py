"""A file's header, believed only as far as its promises are bearable. Only the bytes count: no name, no content type. Knows
what Pillow does with hostile ones, and nothing of what the pixels are for."""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from types import TracebackType

# The two plugins that Pillow would not load by itself for a format that is named.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    Image,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from errors import InvalidImage, shorten

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""No other plugin of Pillow's is ever tried."""
MAX_PIXELS = 1 << 26
MAX_SIDE = 16_384
MAX_SCANS = 100
"""Encoders write ten or so. Each takes a pass over all pixels, however few bytes it has."""
MAX_SEGMENTS = 10_000
"""Pillow keeps a note of each, which is thirty times as large as an empty one."""

_KNOWN = "PNG, JPEG, WebP, GIF, BMP or AVIF"
_JPEG = b"\xff\xd8"
_BEGINNINGS = {
    b"\x89PNG": "a PNG whose header is damaged",
    _JPEG: "a JPEG whose header is damaged",
    b"GIF8": "a GIF whose header is damaged",
    b"RIFF": "a WebP whose header is damaged, or another RIFF file",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"<": "HTML, SVG or other markup",
}
_FILE_TYPE = b"ftyp"
"""Stands at byte 4 of AVIF, HEIC and MP4"""
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_AFTER_A_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])
"""Markers of a JPEG that no length follows"""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@contextlib.contextmanager
def opened(data: bytes, param: str) -> Iterator[Image.Image]:
    """The picture, not decoded yet. Whatever Pillow makes of hostile bytes, also later in the block, is InvalidImage."""
    try:
        with _no_warnings:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.size, param)
            yield image
    except InvalidImage:
        raise
    except Exception as error:
        # Its parsers let through whatever they stumble over: KeyError, zlib.error, struct.error, …
        raise InvalidImage(f"Invalid image: {_reason(error, data)}.", param=param) from error


def check_segments(data: bytes, param: str) -> None:
    """Raises InvalidImage for a JPEG of so many scans or segments that decoding or even opening it would take hours."""
    if not data.startswith(_JPEG):
        return
    segments = scans = 0
    for kind in _segments(data):
        segments, scans = segments + 1, scans + (kind == _START_OF_SCAN)
        if scans > MAX_SCANS:
            raise InvalidImage(f"Invalid image: it is a JPEG of more than {MAX_SCANS} scans.", param=param)
        if segments > MAX_SEGMENTS:
            raise InvalidImage(
                f"Invalid image: it is a JPEG of more than {MAX_SEGMENTS} segments.", param=param
            )


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


def _segments(jpeg: bytes) -> Iterator[int]:
    """The marker of each segment up to the end of the image, found where the decoder finds it."""
    at, marker, is_drawn = len(_JPEG), _MARKER, False
    while found := marker.search(jpeg, at):
        kind, at = found[1][0], found.end()
        is_drawn = is_drawn or kind == _START_OF_SCAN
        if kind == _END_OF_IMAGE and is_drawn:  # before any scan, Pillow reads on
            return
        yield kind
        if kind not in _ALONE:
            at += int.from_bytes(jpeg[at : at + 2])
        marker = _AFTER_A_SCAN if kind == _START_OF_SCAN else _MARKER


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "it is larger than any that is taken"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(error, UnidentifiedImageError):
        return f"it is no {_KNOWN}{_but(data)}"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"it is damaged ({shorten(text, 100)})"


def _but(data: bytes) -> str:
    if data[4:8] == _FILE_TYPE:
        return ", but a HEIC, a video, or an AVIF whose header is damaged"
    head = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next(
        (f", but {what}" for beginning, what in _BEGINNINGS.items() if head.startswith(beginning)), ""
    )


class _NoWarnings:
    """Hides Pillow's warnings: of odd metadata, and of sizes, which are judged here.

    `catch_warnings` is of the whole process, and threads that leave it in another order than they entered would never
    undo it. So the first one in enters it, and the last one out leaves it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(kind, error, trace)


_no_warnings = _NoWarnings()
