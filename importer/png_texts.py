"""The texts in a PNG file that is damaged: those whose chunks are whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PNG_START = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT_BYTES = 20_000_000
"""of all texts together, unpacked"""


def png_texts(data: bytes) -> dict[str, str]:
    """The texts of all whole chunks tEXt, zTXt and iTXt by key; empty if this is no PNG file."""
    texts: dict[str, str] = {}
    left = _MAX_TEXT_BYTES
    for kind, content in _whole_chunks(data):
        try:
            found = _text(kind, content, left)
        except (ValueError, IndexError, zlib.error):
            continue
        if found is not None:
            left -= len(found[1])
            texts[found[0]] = found[1]
    return texts


def has_end(data: bytes) -> bool:
    """Whether all chunks of a PNG file are whole, up to its end."""
    return any(kind == b"IEND" for kind, _ in _whole_chunks(data))


def _whole_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    if not data.startswith(PNG_START):
        return
    position, view = len(PNG_START), memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            return
        body = view[position + 4 : end]
        if zlib.crc32(body) == int.from_bytes(view[end : end + 4], "big"):
            yield bytes(body[:4]), body[4:]
        position = end + 4


def _text(kind: bytes, content: memoryview, limit: int) -> tuple[str, str] | None:
    """Key and text of a chunk; None if it has no text, or one that is longer than `limit` bytes."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return None
    if len(content) > limit:
        return None
    key, _, rest = bytes(content).partition(b"\0")
    encoding, is_packed = "latin-1", kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        encoding, is_packed = "utf-8", rest[0] == 1
        rest = rest[2:].split(b"\0", 2)[2]
    if is_packed:
        unpacker = zlib.decompressobj()
        rest = unpacker.decompress(rest, max(1, limit))
        if not unpacker.eof:
            return None
    return (key.decode("latin-1"), rest.decode(encoding)) if len(rest) <= limit else None
