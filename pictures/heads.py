"""What the files of stored pictures say about themselves, read without their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

from pictures.opening import check_size, hide_warnings, open_image

_EXIF_IFD_TAG, _USER_COMMENT_TAG = 0x8769, 0x9286
_MAX_EXIF_BYTES = 1 << 20
_MAX_CHUNKS = 1000
_PARAM = "image"


@dataclass(frozen=True)
class PictureHead:
    """What the head of a picture's file says. `parameters`: the text that `with_texts` or `encode` wrote into it, None if
    there is none."""

    width: int
    height: int
    parameters: str | None


def read_head(file: BinaryIO) -> PictureHead:
    """The head of a picture that this server made, from its file, which can be seeked; of a PNG, a JPEG and a WebP a few
    kilobytes are read. Raises InvalidImage, and OSError of the file."""
    start = file.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP" and (head := _webp_head(file)) is not None:
        return head
    file.seek(0)
    # Pillow reads a PNG up to its pixels, before which the texts are, and a JPEG up to its first scan.
    with open_image(file, _PARAM) as image:
        text = image.info.get("parameters")
        if not isinstance(text, str):
            # With a PNG, Pillow would decode the pixels to look for EXIF after them.
            text = None if image.format == "PNG" else _user_comment(image.getexif())
        return PictureHead(*image.size, text)


def _webp_head(file: BinaryIO) -> PictureHead | None:
    """From the chunks after the first 12 bytes; None if the size is not in them. By hand, because Pillow reads the file
    whole, and the EXIF chunk comes after the pixels."""
    size: tuple[int, int] | None = None
    parameters: str | None = None
    for _ in range(_MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            break
        kind, length = header[:4], int.from_bytes(header[4:], "little")
        after = file.tell() + length + length % 2
        if size is None:
            size = _webp_size(kind, file.read(min(length, 10)))
        elif kind == b"EXIF" and length <= _MAX_EXIF_BYTES:
            parameters = _text_of_exif(file.read(length))
            break
        file.seek(after)
    if size is None:
        return None
    check_size(size, _PARAM)
    return PictureHead(*size, parameters)


def _text_of_exif(data: bytes) -> str | None:
    try:
        with hide_warnings:
            exif = Image.Exif()
            exif.load(data)
            return _user_comment(exif)
    except MemoryError:
        raise
    except Exception:  # Pillow does not convert the errors of its parsers
        return None


def _webp_size(kind: bytes, data: bytes) -> tuple[int, int] | None:
    """Width and height from the first bytes of the first chunk: of the extended format, or of the pixels."""
    if kind == b"VP8X" and len(data) == 10:
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) == 10:
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and data[:1] == b"\x2f" and len(data) >= 5:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _user_comment(exif: Image.Exif) -> str | None:
    comment = exif.get_ifd(_EXIF_IFD_TAG).get(_USER_COMMENT_TAG)
    if not isinstance(comment, bytes) or not comment.startswith(b"UNICODE\0"):
        return None
    return comment[8:].decode("utf-16-be", "replace")
