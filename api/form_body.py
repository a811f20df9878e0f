"""A form's body: texts as the values that they mean, and files. What arrives is listed in tests/api/test_edits.py."""

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

from api.connection import reading
from api.json_body import is_deep
from errors import InvalidRequest, InvalidValue, WrongContentType

FORM = "multipart/form-data"
MOST_TEXT_BYTES = 30_000_000
"""of one text: an image may come as a data URL, which OpenAI lets be 20,971,520 characters long"""
_MOST_PARTS = 1000
_NESTED = re.compile(r"(\w{1,100})((?:\[\w{0,100}\]){1,4})")
_KEYS = re.compile(r"\[(\w*)\]")
_NUMBER = re.compile(r"\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?\s*", re.ASCII)


@dataclass(frozen=True)
class Form:
    """`fields` by name, a list where a name was given more than once; `files` in the order in which they came."""

    fields: dict[str, Any]
    files: tuple[tuple[str, bytes], ...]


def is_form(request: Request) -> bool:
    """Whether a form was announced. Raises WrongContentType for what is neither form nor JSON."""
    if request.mimetype == FORM:
        return True
    if request.mimetype == "application/json" or request.mimetype.endswith("+json"):
        return False
    raise WrongContentType(
        f"This route takes multipart/form-data or JSON, not {request.mimetype or 'a body without Content-Type'}."
    )


def read_form(request: Request) -> Form:
    """The form in the body. Raises what `connection.reading` raises, and InvalidRequest for a form that is none."""
    with contextlib.ExitStack() as opened, reading(request):

        def store(**of_file: Any) -> IO[bytes]:
            return opened.enter_context(default_stream_factory(**of_file))

        # Flask's own `request.form` is empty, without a word, where the body breaks off.
        parser = FormDataParser(
            stream_factory=store,  # type: ignore[arg-type]
            max_form_memory_size=MOST_TEXT_BYTES,
            max_content_length=request.max_content_length,
            max_form_parts=_MOST_PARTS,
            silent=False,
        )
        try:
            _, texts, files = parser.parse(
                request.stream, request.mimetype, request.content_length, request.mimetype_params
            )
        except ValueError as error:
            raise InvalidRequest(f"The form cannot be read: {error}.") from error
        sent = tuple((name or "", file.read()) for name, file in files.items(multi=True))
    return Form(_fields(texts.items(multi=True)), sent)


# --- names -> objects and lists ---------------------------------------------------------------------


def _fields(texts: Iterable[tuple[str | None, str]]) -> dict[str, Any]:
    """Names as SDKs flatten objects and lists: `a[b]`, `a[]`, `a[0]`, `a[][b]`. A name given more than once is a list."""
    fields: dict[str, Any] = {}
    for name, text in ((name or "", text) for name, text in texts):
        match = _NESTED.fullmatch(name)
        if match is None:
            _put(fields, name, text)
        else:
            _nest(fields, [match[1], *_KEYS.findall(match[2])], text)
    return {name: _lists(value) for name, value in fields.items()}


def _put(fields: dict[str, Any], name: str, value: Any) -> None:
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


def _nest(place: dict[str, Any], keys: list[str], text: str) -> None:
    """Lists are objects with numbers for keys until all is read; `[]` means the last entry if that lacks the next key."""
    for key, following in itertools.pairwise(keys):
        name = key or _open_entry(place, following)
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InvalidRequest(f"The form has {keys[0]!r} both as a text and as something with parts.")
        place = inner
    last = keys[-1] or str(len(place))
    _put(place, last, text)


def _open_entry(place: dict[str, Any], following: str) -> str:
    last = str(len(place) - 1)
    is_open = isinstance(place.get(last), dict) and following not in place[last]
    return last if is_open else str(len(place))


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _lists(each) for key, each in value.items()}
    if inner and all(key.isdecimal() for key in inner):
        return [inner[key] for key in sorted(inner, key=int)]
    return inner


# --- texts -> values -------------------------------------------------------------------------------


def typed(fields: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """The fields with numbers, booleans and objects in the place of their texts, by each one's schema in `properties`;
    a field without a schema is a number where it reads like one. Raises InvalidValue."""
    made = {name: _typed(name, value, properties.get(name)) for name, value in fields.items()}
    if isinstance(made.get("extra_body"), dict) and isinstance(fields["extra_body"], dict):
        made["extra_body"] = typed(fields["extra_body"], properties)
    return made


def _typed(name: str, value: Any, schema: dict[str, Any] | None) -> Any:
    kinds = {"number"} if schema is None else _types(schema)
    if isinstance(value, dict):
        inner = (schema or {}).get("properties", {})
        return {key: _typed(key, each, inner.get(key)) for key, each in value.items()}
    if isinstance(value, list):
        if schema is None or "array" in kinds:
            return [_typed(name, each, (schema or {}).get("items", {"type": "string"})) for each in value]
        # The same twice is one; what contradicts itself is for the check of its type to refuse.
        return _typed(name, value[0], schema) if all(other == value[0] for other in value) else value
    if value.strip() == "null" and name != "prompt":
        return None
    if "boolean" in kinds and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    if kinds & {"integer", "number"} and _NUMBER.fullmatch(value):
        return _number(value)
    if kinds & {"object", "array"} and value.lstrip()[:1] in ("{", "["):
        return json_value(name, value)
    return value


def _types(schema: dict[str, Any]) -> set[str]:
    kinds = schema.get("type", "string" if "enum" in schema else [])
    return {kinds} if isinstance(kinds, str) else set(kinds)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def json_value(name: str, text: str) -> Any:
    """What a field's text is as JSON. Raises InvalidValue."""
    try:
        value = json.loads(text, parse_constant=str)
        if not is_deep(value):
            return value
        raise ValueError("it is nested too deeply")
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"`{name}` looks like JSON and cannot be read as such.", param=name) from error
