"""Opens untrusted pictures within size limits. Detects the format from the bytes, never from a file name or content type.

Checks JPEG segments before Pillow reads them, because Pillow limits neither their number nor that of the scans.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

# Pillow does not load these two plugins by itself when `formats` is given.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    Image,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from errors import InvalidImage, shorten

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""Pillow tries no other format."""
MAX_PIXELS = 1 << 26
MAX_SIDE = 16_384
MAX_SCANS = 100
"""Encoders write about ten. Decoding each takes a pass over all pixels, even if the scan has only a few bytes."""
MAX_SEGMENTS = 10_000
"""Pillow keeps a record of each, which is thirty times as large as an empty segment."""

_FORMAT_NAMES = "PNG, JPEG, WebP, GIF, BMP or AVIF"
_JPEG = b"\xff\xd8"
_SIGNATURES = {
    b"\x89PNG": "a PNG with a damaged header",
    _JPEG: "a JPEG with a damaged header",
    b"GIF8": "a GIF with a damaged header",
    b"RIFF": "a WebP with a damaged header, or another RIFF file",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"<": "HTML, SVG or other markup",
}
_FILE_TYPE = b"ftyp"
"""at byte 4 of AVIF, HEIC and MP4 files"""
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xDA)])
"""JPEG markers that are not followed by a length"""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@contextlib.contextmanager
def open_image(source: bytes | BinaryIO, param: str) -> Iterator[Image.Image]:
    """The picture in bytes or in a file, not decoded yet. Raises InvalidImage for every error of Pillow but MemoryError,
    also later in the block, and OSError of the file."""
    try:
        with hide_warnings:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            check_size(image.size, param)
            yield image
    except (InvalidImage, MemoryError):
        raise  # a lack of memory is not the fault of the picture, whose size was checked
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk: Pillow's own have no number
        data = source if isinstance(source, bytes) else b""
        # Pillow does not convert the errors of its parsers: KeyError, zlib.error, struct.error, …
        raise InvalidImage(f"Invalid image: {_reason(error, data)}.", param=param) from error


def check_jpeg_segments(data: bytes, param: str) -> None:
    """Raises InvalidImage for a JPEG with so many scans or segments that opening or decoding it would take hours."""
    if not data.startswith(_JPEG):
        return
    segments = scans = 0
    for kind in _segments(data):
        segments, scans = segments + 1, scans + (kind == _START_OF_SCAN)
        if scans > MAX_SCANS:
            raise InvalidImage(f"Invalid image: the JPEG has more than {MAX_SCANS} scans.", param=param)
        if segments > MAX_SEGMENTS:
            raise InvalidImage(f"Invalid image: the JPEG has more than {MAX_SEGMENTS} segments.", param=param)


def check_size(size: tuple[int, int], param: str) -> None:
    """Raises InvalidImage for a picture that is too large, or empty."""
    width, height = size
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise InvalidImage(
            f"Invalid image: it has {width}x{height} pixels; the maximum is {MAX_PIXELS} pixels and {MAX_SIDE} pixels "
            "a side.",
            param=param,
        )
    if width < 1 or height < 1:
        raise InvalidImage("Invalid image: it has no pixels.", param=param)


def _segments(jpeg: bytes) -> Iterator[int]:
    """The marker of each segment up to the end of the image, found in the same way as the decoder does."""
    at, marker, has_scan = len(_JPEG), _MARKER, False
    while match := marker.search(jpeg, at):
        kind, at = match[1][0], match.end()
        has_scan = has_scan or kind == _START_OF_SCAN
        if kind == _END_OF_IMAGE and has_scan:  # before the first scan, Pillow ignores it
            return
        yield kind
        if kind not in _WITHOUT_LENGTH:
            at += int.from_bytes(jpeg[at : at + 2])
        marker = _MARKER_AFTER_SCAN if kind == _START_OF_SCAN else _MARKER


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has too many pixels; the maximum is {MAX_PIXELS}"
    if isinstance(error, UnidentifiedImageError):
        return f"it is not a {_FORMAT_NAMES}{_detected_format(data)}"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"it is damaged ({shorten(text, 100)})"


def _detected_format(data: bytes) -> str:
    if data[4:8] == _FILE_TYPE:
        return "; it seems to be a HEIC, a video, or an AVIF with a damaged header"
    head = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    formats = (name for signature, name in _SIGNATURES.items() if head.startswith(signature))
    return next((f"; it seems to be {name}" for name in formats), "")


class _WarningFilter:
    """Hides Pillow's warnings about odd metadata, and about sizes, which are checked here.

    `catch_warnings` changes the filters of the whole process. Threads that leave it in another order than they entered
    it would never restore them. So the first thread enters it, and the last one leaves it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._saved_filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._saved_filters = warnings.catch_warnings()
                self._saved_filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._saved_filters.__exit__(kind, error, trace)


hide_warnings = _WarningFilter()
