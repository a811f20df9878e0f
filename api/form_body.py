"""Parses multipart forms: text fields are converted to the types of their schemas, files are read. The spellings that
clients use are listed in tests/api/test_edits.py."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

from flask import Request
from werkzeug.formparser import FormDataParser, default_stream_factory

from api.connection import body_timeouts
from api.json_body import MAX_VALUES, has_too_many_values, is_nested_too_deeply
from errors import InvalidRequest, InvalidValue, WrongContentType

FORM = "multipart/form-data"
MAX_TEXT_BYTES = 30_000_000
"""Limit of one text field: it may be an image as a data URL, for which OpenAI allows 20,971,520 characters"""
_MAX_PARTS = 1000
_NESTED_NAME = re.compile(r"(\w{1,100})((?:\[\w{0,100}\]){1,4})")
_KEYS = re.compile(r"\[(\w*)\]")
_NUMBER = re.compile(r"\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?\s*", re.ASCII)


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


# --- texts -> values -------------------------------------------------------------------------------


def convert_fields(fields: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """Convert the texts of a form to numbers, booleans and objects, as the schemas in `properties` say.

    A field without a schema becomes a number if it looks like one. Raises InvalidValue.
    """
    converted = {name: _convert(name, value, properties.get(name)) for name, value in fields.items()}
    if isinstance(converted.get("extra_body"), dict) and isinstance(fields["extra_body"], dict):
        converted["extra_body"] = convert_fields(fields["extra_body"], properties)
    return converted


def _convert(name: str, value: Any, schema: dict[str, Any] | None) -> Any:
    types = {"number"} if schema is None else _schema_types(schema)
    if isinstance(value, dict):
        properties = (schema or {}).get("properties", {})
        return {key: _convert(key, child, properties.get(key)) for key, child in value.items()}
    if isinstance(value, list):
        if schema is None or "array" in types:
            return [_convert(name, item, (schema or {}).get("items", {"type": "string"})) for item in value]
        # Equal duplicates count as one value. Different ones stay a list, which the schema check then refuses.
        return _convert(name, value[0], schema) if all(item == value[0] for item in value) else value
    if value.strip() == "null" and name != "prompt":
        return None
    if "boolean" in types and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    if types & {"integer", "number"} and _NUMBER.fullmatch(value):
        return _number(value)
    if types & {"object", "array"} and value.lstrip()[:1] in ("{", "["):
        return parse_json_field(name, value)
    return value


def _schema_types(schema: dict[str, Any]) -> set[str]:
    types = schema.get("type", "string" if "enum" in schema else [])
    return {types} if isinstance(types, str) else set(types)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_json_field(name: str, text: str) -> Any:
    """The JSON value of a field's text. Raises InvalidValue."""
    if has_too_many_values(text.encode("utf-8", "surrogatepass")):
        raise InvalidValue(f"`{name}` has more than {MAX_VALUES} values.", param=name)
    try:
        value = json.loads(text, parse_constant=str)
        if is_nested_too_deeply(value):
            raise ValueError("it is nested too deeply")
        return value
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"`{name}` looks like JSON but cannot be parsed.", param=name) from error
