"""Explains JSON Schema errors to the person who wrote the value: what a schema allows, and why a value is not valid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jsonschema_rs
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from errors import shorten
from schemas.nearest import did_you_mean

LocatedError = tuple[tuple[str | int, ...], str]
"""(path of a value in its document, error message)"""

_TYPES: Mapping[str, str] = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_MAX_MESSAGE_LENGTH = 300
_SIMPLE = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
) | {*("minLength", "maxLength", "minItems", "maxItems")}
"""For errors of these keywords, the message describes everything that the schema allows."""


def is_valid(schema: Mapping[str, Any], document: Any) -> bool:
    """Whether `document` certainly is valid, without a reason. Fifty times faster than `located_errors`, which decides and
    explains if this says no."""
    return fast_validity(schema)(document)


def fast_validity(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """`is_valid` for many documents: compiles the schema, which takes 2 ms for that of the catalogue, only once."""
    try:
        validator = jsonschema_rs.Draft202012Validator(dict(schema))
    except ValueError:  # only jsonschema understands the schema
        return lambda document: False

    def check(document: Any) -> bool:
        try:
            return validator.is_valid(document)
        except ValueError:  # it is nested too deeply
            return False

    return check


def located_errors(
    validator: Draft202012Validator, document: Any, *, show_values: bool = True
) -> Iterator[LocatedError]:
    """All errors of `document`, sorted by path, each message once per path. `show_values`: see `explain`."""
    seen: set[LocatedError] = set()
    for error in sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.path))):
        located = tuple(error.absolute_path), explain(error, show_value=show_values)
        if located not in seen:
            seen.add(located)
            yield located


def first_error(validator: Draft202012Validator, value: Any) -> ValidationError | None:
    """The most relevant error of `value`, or None if it is valid."""
    error: ValidationError | None = best_match(validator.iter_errors(value))
    return error


def explain(error: ValidationError, *, show_value: bool = True) -> str:
    """What is wrong, and what is allowed instead. Pass `show_value=False` for values that may be secret: the message
    then does not repeat the value."""
    rule = rule_of(error, show_value=show_value)
    if show_value and rule and (rule.startswith("it must") or error.validator in ("pattern", "not")):
        rule = f"{given_value(error.instance)} is not allowed{_suggestion(error)}; {rule}"
    return shorten(rule or "it is not allowed", _MAX_MESSAGE_LENGTH)


def _suggestion(error: ValidationError) -> str:
    """The nearest of the values that an `enum`, or one of several alternatives, lists."""
    enums = [each.validator_value for each in (error, *(error.context or ())) if each.validator == "enum"]
    return did_you_mean(error.instance, [value for values in enums for value in values])


def rule_of(error: ValidationError, *, show_value: bool = True) -> str:
    """The broken rule, such as `it must be a whole number from 1 to 10`; empty if it cannot be described.

    A schema's own description is used if it begins with `it must`.
    """
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    keyword, description = str(error.validator), str(schema.get("description", ""))
    if description.startswith("it must"):
        return description
    if keyword in _SIMPLE and (allowed := allowed_values(schema)):
        return f"it must be {allowed}{_example(schema)}"
    if keyword in _RULES and (rule := _RULES[keyword](error, schema)):
        return rule
    if keyword in ("oneOf", "anyOf") and error.context:
        rules = (_rule_of_alternative(inner, show_value) for inner in error.context)
        return "; or ".join(dict.fromkeys(rule for rule in rules if rule))
    if keyword in ("pattern", "not") and description:
        return description
    return error.message if show_value else ""


def _rule_of_alternative(error: ValidationError, show_value: bool) -> str:
    rule, path = rule_of(error, show_value=show_value), ".".join(map(str, error.relative_path))
    return f"{path}: {rule}" if rule and path else rule


def _missing_key(error: ValidationError, schema: Mapping[str, Any]) -> str:
    names = [name for name in schema["required"] if error.message.startswith(f"{name!r} ")]
    if not names:
        return ""
    example = schema.get("properties", {}).get(names[0], {}).get("examples")
    return f"`{names[0]}` is missing" + (
        f"; for example `{_as_yaml({names[0]: example[0]})}`" if example else ""
    )


def _example(schema: Mapping[str, Any]) -> str:
    """The first example of a schema for objects, where a shorter form is a common mistake."""
    examples = schema.get("examples")
    return f", for example {_as_yaml(examples[0])}" if examples and schema.get("type") == "object" else ""


def _as_yaml(value: Any) -> str:
    """A value as YAML on one line; a mapping with one key without braces."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    text = text.removesuffix("...\n").strip()
    return text[1:-1] if isinstance(value, dict) and len(value) == 1 else text


def _unknown_keys(error: ValidationError, schema: Mapping[str, Any]) -> str:
    known = list(schema.get("properties", ()))
    instance: Mapping[str, Any] = cast("Any", error.instance)
    missing = [name for name in known if name not in instance] or known
    unknown = [f"{name}{did_you_mean(name, missing)}" for name in instance if name not in known]
    return f"unknown key {', '.join(unknown)}; allowed: {', '.join(known)}"


def _missing_companion(error: ValidationError, schema: Mapping[str, Any]) -> str:
    instance: Mapping[str, Any] = cast("Any", error.instance)
    missing = [
        f"`{name}` is missing, which `{key}` needs"
        for key, names in schema["dependentRequired"].items()
        for name in names
        if key in instance and name not in instance
    ]
    return "; ".join(missing)


def _only_one_of(error: ValidationError, schema: Mapping[str, Any]) -> str:
    """For alternatives that are told apart by a required key, when a value fits several of them."""
    alternatives = [name for option in schema["oneOf"] for name in option.get("required", ())]
    return f"only one of {', '.join(alternatives)} may be given" if alternatives and not error.context else ""


_RULES: Mapping[str, Callable[[ValidationError, Mapping[str, Any]], str]] = {
    "required": _missing_key,
    "additionalProperties": _unknown_keys,
    "dependentRequired": _missing_companion,
    "oneOf": _only_one_of,
    "uniqueItems": lambda error, schema: "its entries must differ from each other",
    "minProperties": lambda error, schema: (
        f"it must have {_count(schema['minProperties'], 'key', 'at least')}"
    ),
    "maxProperties": lambda error, schema: (
        f"it must have {_count(schema['maxProperties'], 'key', 'at most')}"
    ),
}


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
    if "exclusiveMinimum" in schema:
        parts.append(f"above {schema['exclusiveMinimum']}")
    if high is not None:
        parts.append(f"to {high}" if low is not None else f"of at most {high}")
    if "exclusiveMaximum" in schema:
        parts.append(f"below {schema['exclusiveMaximum']}")
    parts += _length(schema, "Length", "character") + _length(schema, "Items", "entry")
    return " ".join(parts)


def _length(schema: Mapping[str, Any], keyword: str, unit: str) -> list[str]:
    minimum, maximum = schema.get(f"min{keyword}"), schema.get(f"max{keyword}")
    bounds = [_count(minimum, unit, "at least")] if minimum else []
    bounds += [_count(maximum, unit, "at most")] if maximum is not None else []
    return [f"of {' and '.join(bounds)}"] if bounds else []


def _count(number: int, unit: str, bound: str) -> str:
    plural = {"character": "characters", "entry": "entries", "key": "keys"}[unit]
    return f"{bound} {number} {unit if number == 1 else plural}"


def given_value(value: Any) -> str:
    """A value in the form in which error messages quote it: JSON, shortened."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
