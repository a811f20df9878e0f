"""What a picture file says besides its pixels: who may read the prompt in it, and how large it is. Knows the chunks of
PNG; Pillow does the rest."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from errors import InvalidValue, NoPictures

if TYPE_CHECKING:
    from PIL import Image

Policy = Literal["none", "parameters", "workflow"]

MAX_PIXELS = 1 << 26
"""No picture with more pixels than 8192x8192 is decoded."""
DEFAULT_QUALITY = 90

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD pHYs acTL fcTL fdAT".split()
)
_TEXT = frozenset(b"tEXt zTXt iTXt".split())
_COMFYUI = frozenset([b"prompt", b"workflow"])
_MAX_SIDE = {"jpeg": 65500, "webp": 16383}
_MAX_EXIF_CHARACTERS = 32_000  # two bytes each; a JPEG segment ends at 64 KiB


class BrokenPicture(NoPictures, ValueError):
    """The bytes are not a whole PNG."""


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    raw: memoryview
    """The chunk as it stands in the file: length, kind, data, check sum."""


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, of which the first 24 bytes tell. Raises BrokenPicture."""
    if len(data) < 24 or data[:16] != _SIGNATURE + b"\0\0\0\rIHDR":
        raise BrokenPicture("The picture is not a PNG.")
    width, height = struct.unpack_from(">II", data, 16)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise BrokenPicture(f"The PNG claims to be {width}x{height} pixels large.")
    return width, height


def apply_policy(png: bytes, policy: Policy, *, parameters: str | None = None) -> bytes:
    """The same picture, pixel bytes untouched, with only the metadata that `policy` allows.

    `none`: nothing but what the pixels need. `parameters`: that, and `parameters` (if given) as a text chunk of that
    keyword: tEXt if Latin-1 can say it, else iTXt. `workflow`: that, and ComfyUI's own `prompt` and `workflow`.
    Raises BrokenPicture. Whatever follows the end of the PNG is dropped.
    """
    png_size(png)
    parts: list[bytes | memoryview] = [_SIGNATURE]
    text = _text_chunk("parameters", parameters) if policy == "parameters" and parameters is not None else b""
    for chunk in _chunks(png):
        if chunk.kind == b"IDAT" and text:
            parts.append(text)  # before the pixels: many readers look no further
            text = b""
        if chunk.kind in _NEEDED or (policy == "workflow" and _is_comfyui(chunk)):
            parts.append(chunk.raw)
    return b"".join(parts)


def encode(png: bytes, format: Literal["jpeg", "webp"], quality: int | None, parameters: str | None) -> bytes:
    """The picture as a JPEG (transparency on white) or a WebP of `quality` 0 to 100 (None: 90), without any metadata of
    the PNG but its colour profile.

    `parameters` goes into the EXIF field UserComment, where A1111 keeps it; only its first 32,000 characters fit.
    Raises BrokenPicture, also for more than 67 million pixels, and InvalidValue for a side that the format cannot have.
    """
    from PIL import Image

    width, height = png_size(png)
    if width * height > MAX_PIXELS:
        raise BrokenPicture(f"The picture has {width}x{height} pixels; at most {MAX_PIXELS} are decoded.")
    if max(width, height) > _MAX_SIDE[format]:
        raise InvalidValue(
            f"A {format} picture has at most {_MAX_SIDE[format]} pixels a side, this one has {width}x{height}.",
            param="output_format",
        )
    # Pillow would carry some of the PNG's texts over into the new file.
    with io.BytesIO(apply_policy(png, "none")) as source, io.BytesIO() as target:
        try:
            image = Image.open(source, formats=["PNG"])
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise BrokenPicture(f"The PNG cannot be decoded: {error}.") from error
        profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P") else None
        pixels = _on_white(image) if format == "jpeg" else _eight_bit(image)
        pixels.save(
            target,
            format,
            quality=DEFAULT_QUALITY if quality is None else quality,
            icc_profile=profile,
            exif=_exif(parameters) if parameters else b"",
        )
        return target.getvalue()


def _chunks(png: bytes) -> Iterator[_Chunk]:
    """Every chunk up to IEND. Check sums are not looked at: a decoder does, and it costs more than all the rest."""
    view, at, pixels = memoryview(png), len(_SIGNATURE), False
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, end = png[at + 4 : at + 8], at + 12 + length
        if end > len(png) or not kind.isalpha():
            break
        if kind[:1].isupper() and kind not in _NEEDED:
            raise BrokenPicture(
                f"The PNG has a chunk {kind!r} that is not in the standard and may not be left out."
            )
        pixels = pixels or kind == b"IDAT"
        yield _Chunk(kind, view[at + 8 : end - 4], view[at:end])
        if kind == b"IEND" and pixels:
            return
        at = end
    raise BrokenPicture(f"The PNG breaks off or is damaged at byte {at} of {len(png)}.")


def _is_comfyui(chunk: _Chunk) -> bool:
    return chunk.kind in _TEXT and bytes(chunk.data[:80]).split(b"\0", 1)[0] in _COMFYUI


def _text_chunk(keyword: str, text: str) -> bytes:
    text = text.replace("\0", "")  # ends a text in both kinds of chunk
    try:
        kind, data = b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        # not compressed, no language, no translated keyword
        kind, data = (
            b"iTXt",
            keyword.encode("latin-1") + b"\0" + b"\0\0\0\0" + text.encode("utf-8", "replace"),
        )
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _eight_bit(image: Image.Image) -> Image.Image:
    """As RGB, or as RGBA if anything in it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling
        image = image.point(lambda level: level * (1 / 257)).convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    image = _eight_bit(image)
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _exif(parameters: str) -> bytes:
    from PIL import Image

    comment = b"UNICODE\0" + parameters[:_MAX_EXIF_CHARACTERS].encode("utf-16-be", "replace")
    exif = Image.Exif()
    exif.endian = ">"  # readers take UNICODE to be in the byte order of the file, or else big-endian
    exif.get_ifd(0x8769)[0x9286] = comment
    return exif.tobytes()
