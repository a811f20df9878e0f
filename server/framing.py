"""Where a request ends in the bytes that a client sends. Knows nothing of sockets.

Whether a request is valid is decided by gunicorn's parser alone: whatever is odd here counts as complete, so that the parser
sees it and answers."""

from __future__ import annotations

import re
from typing import Protocol

MAX_HEAD_BYTES = 64 * 1024
_MAX_LINE_BYTES = 8 * 1024
_MAX_TRAILER_BYTES = 64 * 1024
_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_FRAMING = re.compile(
    rb"^(content-length|transfer-encoding)[ \t]*:[ \t]*(.*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE
)
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}(?=[ \t;\r\n])")
_LENGTH = re.compile(rb"[0-9]{1,4300}")
"""As many digits as int() reads"""


def end_of_head(received: bytes | bytearray, scanned: int = 0) -> int | None:
    """The number of bytes of the head with its empty line; None if it is not complete. `scanned`: how many bytes an earlier
    call has seen. A line that ends with LF alone ends the head, too: the parser refuses it."""
    start = max(0, scanned - len(b"\r\n\r"))
    empty_line = received.find(b"\r\n\r\n", start)
    end = None if empty_line < 0 else empty_line + len(b"\r\n\r\n")
    # The regular expression takes milliseconds for a long head, counting takes microseconds.
    if received.count(b"\n", start, end) == received.count(b"\r\n", start, end):
        return end
    match = _END.search(received, start)
    return match.end() if match else None


class Body(Protocol):
    """Follows a body while it arrives."""

    size: int
    """Bytes of the body without its encoding, as far as the client has announced them"""
    is_complete: bool
    is_invalid: bool
    """The parser will probably refuse it; where the next request begins is unknown in any case"""

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. What follows the body is ignored."""


class FixedBody:
    """A body of a known length."""

    def __init__(self, size: int, *, is_invalid: bool = False) -> None:
        self.size = size
        self.is_invalid = is_invalid
        self._missing = size
        self.is_complete = size == 0

    def feed(self, data: bytes | memoryview) -> None:
        """See `Body`."""
        self._missing -= len(data)
        self.is_complete = self._missing <= 0


class ChunkedBody:
    """A body in chunks, with trailers or without."""

    def __init__(self) -> None:
        self.size = 0
        self.is_complete = self.is_invalid = False
        self._missing = 0
        """Bytes that are missing of the current chunk and the line break after it"""
        self._line = b""
        self._trailer_bytes: int | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """See `Body`."""
        data = bytes(data)
        position = 0
        while position < len(data) and not self.is_complete:
            if self._missing:
                step = min(self._missing, len(data) - position)
                self._missing -= step
                position += step
                continue
            end = data.find(b"\n", position) + 1
            self._line += data[position : end or None]
            if end:
                self._end_line()
            elif len(self._line) > _MAX_LINE_BYTES:
                self.is_complete = self.is_invalid = True
            position = end or len(data)

    def _end_line(self) -> None:
        line, self._line = self._line, b""
        if self._trailer_bytes is not None:
            self._trailer_bytes += len(line)
            self.is_invalid = self._trailer_bytes > _MAX_TRAILER_BYTES
            self.is_complete = line == b"\r\n" or self.is_invalid
        elif match := _CHUNK_SIZE.match(line):
            size = int(match[0], 16)
            self.size += size
            if size:
                self._missing = size + len(b"\r\n")
            else:
                self._trailer_bytes = 0
        else:
            self.is_complete = self.is_invalid = True


def body_of(head: bytes | bytearray) -> Body:
    """The body that a head announces. One with an invalid length or an unknown encoding is complete at once."""
    fields = [(name.lower(), value) for name, value in _FRAMING.findall(head)]
    match fields:
        case [(b"content-length", length)] if _LENGTH.fullmatch(length):
            return FixedBody(int(length))
        case [(b"transfer-encoding", encoding)] if encoding.lower() == b"chunked":
            return ChunkedBody()
        case []:
            return FixedBody(0)
    return FixedBody(0, is_invalid=True)
