"""Converts numbers, booleans and objects that arrive as text, in forms and in JSON, to the types of their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from api.json_body import MAX_VALUES, has_too_many_values, is_nested_too_deeply
from errors import InvalidValue

_NUMBER = re.compile(r"\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?\s*", re.ASCII)
_IN_A_FORM: Mapping[str, Any] = {"type": "number"}


def convert_fields(
    fields: Mapping[str, Any], schemas: Mapping[str, Any], *, is_form: bool = False
) -> dict[str, Any]:
    """Convert the texts in `fields` as `schemas` (field -> JSON Schema) say. A text that has no such form is unchanged,
    for the schema check to refuse.

    In a form, where everything is text, a field without a schema becomes a number if it looks like one, and the text
    `null` is None for every field. Raises InvalidValue.
    """
    return {name: _convert(name, value, schemas.get(name), is_form) for name, value in fields.items()}


def _convert(name: str, value: Any, schema: Mapping[str, Any] | None, is_form: bool) -> Any:
    if schema is None and not is_form:
        return value
    types = _schema_types(_IN_A_FORM if schema is None else schema)
    if isinstance(value, dict):
        properties = (schema or {}).get("properties", {})
        return {key: _convert(key, child, properties.get(key), is_form) for key, child in value.items()}
    if isinstance(value, list):
        return _convert_list(name, value, schema, types, is_form)
    return _convert_text(name, value, types, is_form) if isinstance(value, str) else value


def _convert_list(
    name: str, value: list[Any], schema: Mapping[str, Any] | None, types: set[str], is_form: bool
) -> Any:
    if schema is None or "array" in types:
        items = (schema or {}).get("items", {"type": "string"})
        return [_convert(name, item, items, is_form) for item in value]
    # Equal duplicates in a form count as one value. Different ones stay a list, which the schema check then refuses.
    if is_form and all(item == value[0] for item in value):
        return _convert(name, value[0], schema, is_form)
    return value


def _convert_text(name: str, text: str, types: set[str], is_form: bool) -> Any:
    has_no_text = bool(types & {"boolean", "integer", "number"})
    if text.strip() == "null" and name != "prompt" and (is_form or has_no_text):
        return None
    if "boolean" in types and text.strip().lower() in ("true", "false", "1", "0"):
        return text.strip().lower() in ("true", "1")
    if types & {"integer", "number"} and _NUMBER.fullmatch(text):
        return _number(text)
    if types & {"object", "array"} and text.lstrip()[:1] in ("{", "["):
        return parse_json_field(name, text)
    return text


def _schema_types(schema: Mapping[str, Any]) -> set[str]:
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
