"""Encodes drawn pictures: removes or adds metadata such as the prompt, and converts PNG to JPEG and WebP.

Reads PNG chunks itself, so that metadata can be removed without decoding the picture or changing its pixel bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from PIL import Image

from errors import InvalidValue, NoPictures
from pictures.opening import MAX_PIXELS
from pictures.pixels import Pair, has_transparent_pixels, on_white, to_8_bit

DEFAULT_QUALITY = 90
_COMPRESS_LEVEL = 1
"""Of PNGs, as SaveImageWebsocket has it: level 4 takes about twice as long for a few percent fewer bytes."""
_NO_TEXTS: Mapping[str, str] = MappingProxyType({})

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD pHYs acTL fcTL fdAT".split()
)
_ALPHA_TYPES = (b"\4", b"\6")
"""The colour types of a PNG, in byte 25, that have an alpha channel"""
_EXIF_IFD_TAG, _USER_COMMENT_TAG = 0x8769, 0x9286
_OTHER_FORMATS = ("JPEG", "WEBP", "AVIF", "BMP", "TIFF")
_MAX_SIDE = {"jpeg": 65500, "webp": 16383}
_MAX_EXIF_CHARACTERS = 32_000  # two bytes each; a JPEG segment has at most 64 KiB


class BrokenPicture(NoPictures, ValueError):
    """The bytes are not a complete PNG."""


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    raw: memoryview
    """the whole chunk as in the file: length, kind, data, checksum"""


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels; the first 24 bytes of the PNG are enough. Raises BrokenPicture."""
    if len(data) < 24 or data[:16] != _SIGNATURE + b"\0\0\0\rIHDR":
        raise BrokenPicture("The picture is not a PNG.")
    width, height = struct.unpack_from(">II", data, 16)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise BrokenPicture(f"The PNG header gives an invalid size: {width}x{height} pixels.")
    return width, height


def as_png(data: bytes) -> bytes:
    """A picture that the engine made, as a PNG: a PNG is returned unchanged, a JPEG, WebP, AVIF, BMP or TIFF is
    converted. Raises BrokenPicture."""
    if data.startswith(_SIGNATURE):
        return data
    with io.BytesIO(data) as source, io.BytesIO() as target:
        try:
            image: Image.Image = Image.open(source, formats=_OTHER_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BrokenPicture(
                    f"The picture has {image.width}x{image.height} pixels; the maximum is {MAX_PIXELS}."
                )
            profile = image.info.get("icc_profile")
            if image.mode not in ("RGB", "RGBA", "L", "LA", "P"):
                image = to_8_bit(image).convert("RGB")
            image.save(target, "PNG", compress_level=_COMPRESS_LEVEL, icc_profile=profile)
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise BrokenPicture(
                "The picture is neither a PNG nor a JPEG, WebP, AVIF, BMP or TIFF."
            ) from error
        return target.getvalue()


def with_texts(png: bytes, texts: Mapping[str, str] = _NO_TEXTS) -> bytes:
    """The same picture with only these texts, by keyword, as metadata. Its pixel bytes are not changed.

    Only the chunks that are needed to show the pixels are kept. A text becomes a chunk before them: tEXt if it can be
    encoded as Latin-1, else iTXt. Bytes after the end of the PNG are removed. Raises BrokenPicture.
    """
    png_size(png)
    parts: list[bytes | memoryview] = [_SIGNATURE]
    pending = [_text_chunk(keyword, text) for keyword, text in texts.items()]
    for chunk in _chunks(png):
        if chunk.kind == b"IDAT" and pending:
            parts += pending  # before the pixels: many readers do not read further
            pending = []
        if chunk.kind in _PIXEL_CHUNKS:
            parts.append(chunk.raw)
    return b"".join(parts)


def encode(
    png: bytes,
    format: Literal["jpeg", "webp"],
    quality: int | None,
    parameters: str | None,
    *,
    size: Pair | None = None,
) -> bytes:
    """The picture, or its top left `size` pixels, as a JPEG (transparency blended with white) or a WebP of `quality` 0 to
    100 (None: 90).

    Of the PNG's metadata only the colour profile is kept. `parameters` is written to the EXIF field UserComment, where
    A1111 writes it; only its first 32,000 characters fit. Raises BrokenPicture, also for more than 67 million pixels,
    and InvalidValue if a side is longer than the format allows.
    """
    width, height = size or png_size(png)
    if max(width, height) > _MAX_SIDE[format]:
        raise InvalidValue(
            f"The picture has {width}x{height} pixels; {format} allows at most {_MAX_SIDE[format]} pixels a side.",
            param="output_format",
        )
    image = _decode(png)
    with io.BytesIO() as target:
        profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P") else None
        pixels = to_8_bit(image if image.size == (width, height) else image.crop((0, 0, width, height)))
        pixels = pixels.convert("RGBA" if pixels.has_transparency_data else "RGB")
        if format == "jpeg":
            pixels = on_white(pixels)
        pixels.save(
            target,
            format,
            quality=DEFAULT_QUALITY if quality is None else quality,
            icc_profile=profile,
            exif=_exif(parameters) if parameters else b"",
        )
        return target.getvalue()


def size_in_canvas(png: bytes, size: Pair, canvas: Pair) -> Pair:
    """How many pixels of a picture of a canvas of `canvas` pixels show its top left `size`: as many, unless the picture
    shows the canvas at another scale. Raises BrokenPicture."""
    width, height = png_size(png)
    return round(width * size[0] / canvas[0]), round(height * size[1] / canvas[1])


def is_transparent(png: bytes, size: Pair) -> bool:
    """Whether any of the top left `size` pixels is not opaque. Only a PNG that may have such pixels is decoded. Raises
    BrokenPicture."""
    has_alpha = png[25:26] in _ALPHA_TYPES or any(chunk.kind == b"tRNS" for chunk in _chunks(png))
    return has_alpha and has_transparent_pixels(_decode(png).crop((0, 0, *size)).convert("RGBA"))


def opaque(png: bytes) -> bytes:
    """The picture on a white background, as a PNG of 8 bits. Raises BrokenPicture."""
    image = _decode(png)
    with io.BytesIO() as target:
        profile = image.info.get("icc_profile")
        on_white(image.convert("RGBA")).save(
            target, "PNG", compress_level=_COMPRESS_LEVEL, icc_profile=profile
        )
        return target.getvalue()


def crop(png: bytes, size: Pair) -> bytes:
    """The top left `size` pixels, as a PNG. Raises BrokenPicture."""
    if size == png_size(png):
        return png
    image = _decode(png)
    with io.BytesIO() as target:
        profile = image.info.get("icc_profile")
        image.crop((0, 0, *size)).save(target, "PNG", compress_level=_COMPRESS_LEVEL, icc_profile=profile)
        return target.getvalue()


def _decode(png: bytes) -> Image.Image:
    """The decoded picture, without the PNG's texts, which Pillow would copy. Raises BrokenPicture."""
    width, height = png_size(png)
    if width * height > MAX_PIXELS:
        raise BrokenPicture(f"The picture has {width}x{height} pixels; the maximum is {MAX_PIXELS} pixels.")
    with io.BytesIO(with_texts(png)) as source:
        try:
            image = Image.open(source, formats=["PNG"])
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise BrokenPicture(f"The PNG cannot be decoded: {error}.") from error
        return image


def _chunks(png: bytes) -> Iterator[_Chunk]:
    """Every chunk up to IEND. Checksums are not verified: decoders do that, and it costs more than all the rest."""
    view, at, has_pixels = memoryview(png), len(_SIGNATURE), False
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, end = png[at + 4 : at + 8], at + 12 + length
        if end > len(png) or not kind.isalpha():
            break
        if kind[:1].isupper() and kind not in _PIXEL_CHUNKS:
            raise BrokenPicture(f"The PNG has a critical chunk {kind!r} that is not in the PNG standard.")
        has_pixels = has_pixels or kind == b"IDAT"
        yield _Chunk(kind, view[at + 8 : end - 4], view[at:end])
        if kind == b"IEND" and has_pixels:
            return
        at = end
    raise BrokenPicture(f"The PNG is incomplete or damaged at byte {at} of {len(png)}.")


def _text_chunk(keyword: str, text: str) -> bytes:
    text = text.replace("\0", "")  # NUL would end the text in both kinds of chunk
    try:
        kind, data = b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        # not compressed, no language, no translated keyword
        kind, data = (
            b"iTXt",
            keyword.encode("latin-1") + b"\0" + b"\0\0\0\0" + text.encode("utf-8", "replace"),
        )
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _exif(parameters: str) -> bytes:
    comment = b"UNICODE\0" + parameters[:_MAX_EXIF_CHARACTERS].encode("utf-16-be", "replace")
    exif = Image.Exif()
    exif.endian = ">"  # readers decode UNICODE in the byte order of the file, or as big-endian
    exif.get_ifd(_EXIF_IFD_TAG)[_USER_COMMENT_TAG] = comment
    return exif.tobytes()
