"""Explains JSON Schema errors to the person who wrote the value: what a schema allows, and why a value is not valid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from errors import shorten

LocatedError = tuple[tuple[str | int, ...], str]
"""(path of a value in its document, error message)"""

_TYPES: Mapping[str, str] = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_MAX_MESSAGE_LENGTH = 300
_SIMPLE = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
) | {*("minLength", "maxLength", "minItems", "maxItems")}
"""For errors of these keywords, the message describes everything that the schema allows."""


def located_errors(
    validator: Draft202012Validator, document: Any, *, show_values: bool = True
) -> Iterator[LocatedError]:
    """All errors of `document`, sorted by path. `show_values`: see `explain`."""
    for error in sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.path))):
        yield tuple(error.absolute_path), explain(error, show_value=show_values)


def first_error(validator: Draft202012Validator, value: Any) -> ValidationError | None:
    """The most relevant error of `value`, or None if it is valid."""
    error: ValidationError | None = best_match(validator.iter_errors(value))
    return error


def explain(error: ValidationError, *, show_value: bool = True) -> str:
    """What is wrong, and what is allowed instead. Pass `show_value=False` for values that may be secret: the message
    then does not repeat the value."""
    rule = rule_of(error, show_value=show_value)
    if show_value and rule.startswith("it must"):
        rule = f"{given_value(error.instance)} is not allowed; {rule}"
    return shorten(rule or "it is not allowed", _MAX_MESSAGE_LENGTH)


def rule_of(error: ValidationError, *, show_value: bool = True) -> str:
    """The broken rule, such as `it must be a whole number from 1 to 10`; empty if it cannot be described.

    A schema's own description is used if it begins with `it must`.
    """
    schema, keyword = error.schema, error.validator
    description = str(schema.get("description", "")) if isinstance(schema, Mapping) else ""
    if description.startswith("it must"):
        return description
    if keyword in _SIMPLE and isinstance(schema, Mapping) and (allowed := allowed_values(schema)):
        return f"it must be {allowed}"
    if keyword in ("oneOf", "anyOf") and error.context:
        return "; or ".join(
            dict.fromkeys(rule_of(inner, show_value=show_value) or "" for inner in error.context)
        )
    if keyword == "required":
        return f"`{error.message.split(chr(39))[1]}` is missing"
    if (
        keyword == "additionalProperties"
        and isinstance(schema, Mapping)
        and isinstance(error.instance, Mapping)
    ):
        known = list(schema.get("properties", ()))
        unknown = [str(name) for name in error.instance if name not in known]
        return f"unknown key {', '.join(unknown)}; allowed: {', '.join(known)}"
    return error.message if show_value else ""


def allowed_values(schema: Mapping[str, Any]) -> str:
    """What a schema of a plain value allows, such as `a whole number from 1 to 10`; empty if it cannot be described."""
    if "enum" in schema:
        return "one of " + ", ".join(map(_as_text, schema["enum"]))
    if "const" in schema:
        return _as_text(schema["const"])
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and low == high:
        return str(low)
    types = schema.get("type", ())
    parts = [" or ".join(_TYPES[name] for name in ([types] if isinstance(types, str) else types))]
    if not parts[0]:
        return ""
    if low is not None:
        parts.append(f"from {low}" if high is not None else f"of at least {low}")
    if high is not None:
        parts.append(f"to {high}" if low is not None else f"of at most {high}")
    parts += _length(schema, "Length", "characters") + _length(schema, "Items", "entries")
    return " ".join(parts)


def _length(schema: Mapping[str, Any], keyword: str, unit: str) -> list[str]:
    minimum, maximum = schema.get(f"min{keyword}"), schema.get(f"max{keyword}")
    bounds = [f"at least {minimum}"] if minimum else []
    bounds += [f"at most {maximum}"] if maximum is not None else []
    return [f"of {' and '.join(bounds)} {unit}"] if bounds else []


def given_value(value: Any) -> str:
    """A value in the form in which error messages quote it: JSON, shortened."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
