"""What a JSON Schema allows, and why a value is not valid against it, in words for the person who wrote the value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from errors import shorten

LocatedError = tuple[tuple[str | int, ...], str]
"""Path of a value in its document, and what is wrong there."""

_TYPES: Mapping[str, str] = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
_LONGEST = 300
_SIMPLE = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
) | {*("minLength", "maxLength", "minItems", "maxItems")}
"""Keywords whose errors are best answered by everything that their schema allows."""


def located_errors(
    validator: Draft202012Validator, document: Any, *, show_values: bool = True
) -> Iterator[LocatedError]:
    """Every error of `document`, in the order of their paths. `show_values`: see `explain`."""
    for error in sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.path))):
        yield tuple(error.absolute_path), explain(error, show_value=show_values)


def first_error(validator: Draft202012Validator, value: Any) -> ValidationError | None:
    """The error that says most about `value`, or None."""
    error: ValidationError | None = best_match(validator.iter_errors(value))
    return error


def explain(error: ValidationError, *, show_value: bool = True) -> str:
    """What is wrong, and what is allowed instead. Without `show_value` the text repeats nothing that was given, for
    values that may be secret."""
    rule = rule_of(error, show_value=show_value)
    if show_value and rule.startswith("it must"):
        rule = f"{given_value(error.instance)} is not allowed; {rule}"
    return shorten(rule or "it is not allowed", _LONGEST)


def rule_of(error: ValidationError, *, show_value: bool = True) -> str:
    """The rule that was broken, such as `it must be a whole number from 1 to 10`; empty if there are no words for it.

    A schema whose description begins with `it must` has words of its own.
    """
    schema, keyword = error.schema, error.validator
    described = str(schema.get("description", "")) if isinstance(schema, Mapping) else ""
    if described.startswith("it must"):
        return described
    if keyword in _SIMPLE and isinstance(schema, Mapping) and (words := allowed_values(schema)):
        return f"it must be {words}"
    if keyword in ("oneOf", "anyOf") and error.context:
        return "; or ".join(dict.fromkeys(rule_of(inner) or inner.message for inner in error.context))
    if keyword == "required":
        return f"`{error.message.split(chr(39))[1]}` is missing"
    if (
        keyword == "additionalProperties"
        and isinstance(schema, Mapping)
        and isinstance(error.instance, Mapping)
    ):
        known = list(schema.get("properties", ()))
        unknown = [str(name) for name in error.instance if name not in known]
        return f"there is no {', '.join(unknown)} here; there is {', '.join(known)}"
    return error.message if show_value else ""


def allowed_values(schema: Mapping[str, Any]) -> str:
    """What a schema of a plain value allows, such as `a whole number from 1 to 10`; empty if it cannot be said so."""
    if "enum" in schema:
        return "one of " + ", ".join(map(_as_written, schema["enum"]))
    if "const" in schema:
        return _as_written(schema["const"])
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and low == high:
        return str(low)
    kinds = schema.get("type", ())
    words = [" or ".join(_TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))]
    if not words[0]:
        return ""
    if low is not None:
        words.append(f"from {low}" if high is not None else f"of at least {low}")
    if high is not None:
        words.append(f"to {high}" if low is not None else f"of at most {high}")
    words += _length(schema, "Length", "characters") + _length(schema, "Items", "entries")
    return " ".join(words)


def _length(schema: Mapping[str, Any], keyword: str, unit: str) -> list[str]:
    least, most = schema.get(f"min{keyword}"), schema.get(f"max{keyword}")
    words = [f"at least {least}"] if least else []
    words += [f"at most {most}"] if most is not None else []
    return [f"of {' and '.join(words)} {unit}"] if words else []


def given_value(value: Any) -> str:
    """A value as an error message repeats it: JSON, shortened."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _as_written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
