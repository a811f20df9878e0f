"""Pictures made for tests."""

from __future__ import annotations

import io
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pattern(width: int = 256, height: int = 256) -> Image.Image:
    """A picture in which adjacent pixels differ."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 7 % 256, y * 5 % 256, (x * y) % 256) for y in range(height) for x in range(width)])
    return image


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, kind: bytes, rows: bytes) -> bytes:
    """`kind`: the two bytes of bit depth and colour type; `rows`: the pixel data before compression, valid or not."""
    header = width.to_bytes(4) + height.to_bytes(4) + kind + b"\0\0\0"
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header gives a large size."""
    return png(width, height, b"\x01\x00", b"\0" * 1000)


def empty_scans(count: int) -> bytes:
    """A JPEG whose last scan is repeated `count` times."""
    whole = encoded(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]
