"""Finds text fields of a multipart form in its bytes, so that one can be replaced and everything else, such as a hundred
megabytes of audio, stays as it was sent. A parser of forms would not say where a field lies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from mmap import mmap

from errors import InvalidRequest, InvalidValue

MAX_PARTS = 1000
MAX_FIELD_BYTES = 10_000
_MAX_HEAD_BYTES = 16_384
_NAME = re.compile(rb'^content-disposition:[^\r\n]*?;\s*name=(?:"([^"\r\n]*)"|([^\s;"]+))', re.I | re.M)
_FILE_NAME = re.compile(rb"^content-disposition:[^\r\n]*?;\s*filename\*?=", re.I | re.M)


@dataclass(frozen=True)
class FormField:
    """A text field, and where its bytes lie in the body. A field that is missing has no part and lies at the beginning."""

    start: int
    end: int
    value: str = ""
    is_part: bool = True


def form_field(body: bytes | mmap, content_type: str, name: str) -> FormField:
    """The text field of this name. Raises InvalidRequest if the form is incomplete or has no boundary, and InvalidValue if
    the field occurs twice, is too long or is not UTF-8."""
    found: FormField | None = None
    for head, start, end in _parts(body, b"--" + _boundary(content_type)):
        match = _NAME.search(head)
        part_name = (match[1] or match[2] or b"").decode("utf-8", "replace") if match else ""
        if part_name != name or _FILE_NAME.search(head):
            continue
        if found is not None:
            raise InvalidValue(f"`{name}` occurs twice.", param=name)
        if end - start > MAX_FIELD_BYTES:
            raise InvalidValue(f"`{name}` is longer than {MAX_FIELD_BYTES} bytes.", param=name)
        try:
            found = FormField(start, end, bytes(body[start:end]).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidValue(f"`{name}` is not UTF-8.", param=name) from error
    return found or FormField(0, 0, is_part=False)


def first_part(content_type: str, name: str, value: bytes) -> bytes:
    """The bytes that add a field at the beginning of a form that does not have it."""
    head = f'Content-Disposition: form-data; name="{name}"'.encode()
    return b"--" + _boundary(content_type) + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise InvalidRequest("The form has no boundary in its Content-Type.")
    return boundary.encode("latin-1", "replace")


def _parts(body: bytes | mmap, delimiter: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The head of each part, and where its content begins and ends."""
    position = 0 if body[: len(delimiter)] == delimiter else body.find(b"\r\n" + delimiter) + 2
    if position == 1:
        raise InvalidRequest("The form is incomplete: it has no part.")
    for _ in range(MAX_PARTS):
        position += len(delimiter)
        if body[position : position + 2] == b"--":
            return
        head_end = body.find(b"\r\n\r\n", position, position + _MAX_HEAD_BYTES)
        end = body.find(b"\r\n" + delimiter, position if head_end < 0 else head_end)
        if head_end < 0 or end < 0:
            raise InvalidRequest("The form is incomplete: a part has no end.")
        yield bytes(body[position:head_end]), head_end + 4, max(end, head_end + 4)
        position = end + 2
    raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
