"""Finds fields of a JSON object in its text, so that one can be replaced and everything else stays as it was sent: the order
of keys, integers of any size, unknown fields. Nested values are skipped without being parsed, so a body may have a hundred
megabytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from errors import InvalidRequest, InvalidValue

MAX_TOKENS = 1_000_000
"""Limit of the strings and brackets in one body; that many take half a second"""
MAX_FIELD_BYTES = 10_000
"""Limit of a field that is read"""
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_OPENING = re.compile(rb"[ \t\r\n]*+\{")
_PLAIN_KEY = re.compile(rb'"(\w*+)"')
"""Needs no decoding; nearly all keys are so"""
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_LITERAL = re.compile(rb"[^\s,}\]\[{\"]++")
_SPACE = re.compile(rb"[ \t\r\n]*+")

_OPENING_BRACKETS, _CLOSING_BRACKETS = b"{[", b"}]"

Text = bytes | mmap


@dataclass(frozen=True)
class JsonField:
    """A field's value, and where it lies in the text. `value`: as `json.loads` gives it; None also for an object or a list
    (`is_container`). A field that is missing is empty and lies at the beginning of the object; `is_only`: which has no
    other field."""

    start: int
    end: int
    value: Any = None
    is_container: bool = False
    is_only: bool = False


def top_level_field(text: Text, name: str) -> JsonField:
    """The field of this name of the object `text`. Raises InvalidRequest if it is not a JSON object, as far as that is seen
    without parsing its values, and InvalidValue if the field occurs twice."""
    beginning = _object_start(text)
    found: JsonField | None = None
    is_empty = True
    for key, start in _keys(text, beginning):
        is_empty = False
        if key == name:
            if found is not None:
                raise InvalidValue(f"`{key}` occurs twice.", param=key)
            found = _field(text, key, start)
    return found or JsonField(beginning, beginning, is_only=is_empty)


def with_values(text: bytes, values: Mapping[str, Any]) -> bytes:
    """`text` with new values in the place of fields that it has; everything else stays as it was sent. Raises what
    `top_level_field` raises, and InvalidRequest for a value without an end."""
    spans = [
        (*_span(text, start), values[key]) for key, start in _keys(text, _object_start(text)) if key in values
    ]
    parts: list[bytes] = []
    position = 0
    for start, end, value in spans:
        parts += [text[position:start], json.dumps(value).encode()]
        position = end
    return b"".join((*parts, text[position:]))


def _object_start(text: Text) -> int:
    opening = _OPENING.match(text)
    if opening is None:
        raise InvalidRequest("The body must be a JSON object.")
    return opening.end()


def _span(text: Text, start: int) -> tuple[int, int]:
    """Where the value that begins at `start` begins and ends."""
    if text[start] not in _OPENING_BRACKETS:
        match = _TOKEN.match(text, start) or _LITERAL.match(text, start)
        if match is None:
            raise InvalidRequest("The body is not valid JSON.")
        return start, match.end()
    depth = 0
    for match in _TOKEN.finditer(text, start):
        first = text[match.start()]
        depth += (first in _OPENING_BRACKETS) - (first in _CLOSING_BRACKETS)
        if depth == 0:
            return start, match.end()
    raise InvalidRequest("The body is not valid JSON, or not complete.")


def first_field(name: str, value: bytes, place: JsonField) -> bytes:
    """The text that adds a field at the beginning of an object that does not have it. `place`: of the missing field."""
    return json.dumps(name).encode() + b": " + value + (b"" if place.is_only else b", ")


def _keys(text: Text, position: int) -> Iterator[tuple[str, int]]:
    """Each key of the object that opens before `position`, and where its value begins."""
    depth = 1
    for count, match in enumerate(_TOKEN.finditer(text, position)):
        if count >= MAX_TOKENS:
            raise InvalidRequest(f"The body has more than {MAX_TOKENS} strings and brackets.")
        # Not the text of the match: a string may have a hundred megabytes.
        first, length = text[match.start()], match.end() - match.start()
        if first in _OPENING_BRACKETS:
            depth += 1
        elif first in _CLOSING_BRACKETS:
            depth -= 1
            if depth == 0:
                if first == ord("}") and _end_of_space(text, match.end()) == len(text):
                    return
                break
        elif length == 1:
            break  # a string without an end
        elif depth == 1 and (colon := _COLON.match(text, match.end())):
            yield _key(text, match), colon.end()
    raise InvalidRequest("The body is not valid JSON, or not complete.")


def _key(text: Text, match: re.Match[bytes]) -> str:
    if plain := _PLAIN_KEY.match(text, match.start(), match.end()):
        return plain[1].decode("ascii")
    if match.end() - match.start() > MAX_FIELD_BYTES:
        return ""  # none that anybody looks for
    key: str = _decoded(text[match.start() : match.end()])
    return key


def _end_of_space(text: Text, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _field(text: Text, key: str, start: int) -> JsonField:
    match = _TOKEN.match(text, start) or _LITERAL.match(text, start)
    if match is None:
        raise InvalidRequest(f"The body is not valid JSON: `{key}` has no value.")
    if match.end() - start > MAX_FIELD_BYTES:
        raise InvalidValue(f"`{key}` is longer than {MAX_FIELD_BYTES} bytes.", param=key)
    if text[start] in _OPENING_BRACKETS:
        return JsonField(start, start, is_container=True)
    return JsonField(start, match.end(), _decoded(match[0]))


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
