"""Parses multipart forms into text fields and files. The spellings that clients use are listed in tests/api/test_edits.py;
`api/field_values.py` converts the texts to the types of their schemas."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

from flask import Request
from werkzeug.formparser import FormDataParser, default_stream_factory

from api.connection import body_timeouts
from errors import InvalidRequest, WrongContentType

FORM = "multipart/form-data"
MAX_TEXT_BYTES = 30_000_000
"""Limit of one text field: it may be an image as a data URL, for which OpenAI allows 20,971,520 characters"""
_MAX_PARTS = 1000
_NESTED_NAME = re.compile(r"(\w{1,100})((?:\[\w{0,100}\]){1,4})")
_KEYS = re.compile(r"\[(\w*)\]")


@dataclass(frozen=True)
class Form:
    """`fields` by name, with a list if a name occurs more than once; `files` in the order they were sent."""

    fields: dict[str, Any]
    files: tuple[tuple[str, bytes], ...]


def is_form(request: Request) -> bool:
    """Whether the content type is a form. Raises WrongContentType if it is neither a form nor JSON."""
    if request.mimetype == FORM:
        return True
    if request.mimetype == "application/json" or request.mimetype.endswith("+json"):
        return False
    raise WrongContentType(
        f"This route accepts multipart/form-data or JSON, not {request.mimetype or 'a body without Content-Type'}."
    )


def read_form(request: Request) -> Form:
    """The form in the body. Raises what `body_timeouts` raises, and InvalidRequest if the form is not valid."""
    with contextlib.ExitStack() as opened_files, body_timeouts(request):

        def open_file(**options: Any) -> IO[bytes]:
            return opened_files.enter_context(default_stream_factory(**options))

        # Flask's own `request.form` is silently empty if the body is incomplete.
        parser = FormDataParser(
            stream_factory=open_file,  # type: ignore[arg-type]
            max_form_memory_size=MAX_TEXT_BYTES,
            max_content_length=request.max_content_length,
            max_form_parts=_MAX_PARTS,
            silent=False,
        )
        try:
            _, texts, files = parser.parse(
                request.stream, request.mimetype, request.content_length, request.mimetype_params
            )
        except ValueError as error:
            raise InvalidRequest(f"The form cannot be parsed: {error}.") from error
        file_contents = tuple((name or "", file.read()) for name, file in files.items(multi=True))
    return Form(_fields(texts.items(multi=True)), file_contents)


# --- names -> objects and lists --------------------------------------------------------------------


def _fields(texts: Iterable[tuple[str | None, str]]) -> dict[str, Any]:
    """Rebuild objects and lists from the names that SDKs flatten them to: `a[b]`, `a[]`, `a[0]`, `a[][b]`. A name that
    occurs more than once becomes a list."""
    fields: dict[str, Any] = {}
    for name, text in ((name or "", text) for name, text in texts):
        match = _NESTED_NAME.fullmatch(name)
        if match is None:
            _add(fields, name, text)
        else:
            _add_nested(fields, [match[1], *_KEYS.findall(match[2])], text)
    return {name: _to_lists(value) for name, value in fields.items()}


def _add(fields: dict[str, Any], name: str, value: Any) -> None:
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


def _add_nested(target: dict[str, Any], keys: list[str], text: str) -> None:
    """Add `text` under the path `keys`. Lists are dicts with numeric keys until all fields are read; `[]` is the last
    entry if that entry does not have the next key yet, else a new entry."""
    for key, next_key in itertools.pairwise(keys):
        child = target.setdefault(key or _entry_index(target, next_key), {})
        if not isinstance(child, dict):
            raise InvalidRequest(f"The form contains {keys[0]!r} both as a text and as an object or list.")
        target = child
    _add(target, keys[-1] or str(len(target)), text)


def _entry_index(entries: dict[str, Any], next_key: str) -> str:
    last = str(len(entries) - 1)
    is_incomplete = isinstance(entries.get(last), dict) and next_key not in entries[last]
    return last if is_incomplete else str(len(entries))


def _to_lists(value: Any) -> Any:
    """Turn dicts with numeric keys into lists."""
    if not isinstance(value, dict):
        return value
    converted = {key: _to_lists(child) for key, child in value.items()}
    if converted and all(key.isdecimal() for key in converted):
        return [converted[key] for key in sorted(converted, key=int)]
    return converted
