from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schemas import located_errors

SECRET = "sk-secret"


def messages(schema: dict[str, Any], value: Any, *, show_values: bool = True) -> list[str]:
    return [text for _, text in located_errors(Draft202012Validator(schema), value, show_values=show_values)]


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 9}, 0, "0 is not allowed; it must be a whole number from 1 to 9"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 9}, 0, "0 is not allowed; it must be a number above 0 of at most 9"),
        ({"type": "string", "minLength": 1}, "", '"" is not allowed; it must be a string of at least 1 character'),
        ({"type": "array", "minItems": 2}, [1], "[1] is not allowed; it must be a list of at least 2 entries"),
        ({"enum": ["a", "b"]}, "c", '"c" is not allowed; it must be one of a, b'),
        ({"type": ["string", "null"]}, 5, "5 is not allowed; it must be a string or null"),
        ({"pattern": "^x", "description": "A name."}, "y", '"y" is not allowed; A name.'),
        ({"pattern": "^x", "description": "it must begin with x"}, "y", '"y" is not allowed; it must begin with x'),
        ({"required": ["it's", "b"]}, {"b": 1}, "`it's` is missing"),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"b": 1}, "unknown key b; allowed: a"),
        ({"required": ["a"], "properties": {"a": {"examples": [{"x": "1x1", "y": 2}]}}}, {}, "`a` is missing; for example `a: {x: 1x1, y: 2}`"),
        ({"type": "object", "examples": [{"x": "1x1", "y": True}]}, "1x1", "it must be an object, for example {x: 1x1, y: true}"),
        ({"uniqueItems": True}, ["a", "a"], "its entries must differ from each other"),
        ({"minProperties": 1}, {}, "{} is not allowed; it must have at least 1 key"),
        ({"dependentRequired": {"count": ["items"]}}, {"count": 1}, "`items` is missing, which `count` needs"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1, "b": 1}, "only one of a, b may be given"),
        (
            {"oneOf": [{"enum": ["saved"]}, {"type": "array", "uniqueItems": True}]},
            ["a", "a"],
            "it must be one of saved; or its entries must differ from each other",
        ),
        (
            {"oneOf": [{"type": "array"}, {"properties": {"exits": {"type": "array", "minItems": 1}}}]},
            {"exits": []},
            "it must be a list; or exits: it must be a list of at least 1 entry",
        ),
    ],
)  # fmt: skip
def test_a_message_says_what_was_given_and_what_is_allowed(
    schema: dict[str, Any], value: Any, message: str
) -> None:
    (text,) = messages(schema, value)
    assert message in text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"enum": ["a"]},
        {"pattern": "^x"},
        {"not": {"type": "string"}},
        {"maxLength": 3},
        {"oneOf": [{"type": "integer"}, {"pattern": "^x"}]},
        {"oneOf": [{"type": "string"}, {"minLength": 1}]},
        {"format": "uri", "const": "x"},
    ],
)
def test_a_value_that_may_be_secret_is_never_repeated(schema: dict[str, Any]) -> None:
    (text,) = messages(schema, SECRET, show_values=False)
    assert text
    assert SECRET not in text


def test_two_keywords_with_the_same_message_are_one_error() -> None:
    schema = {"type": "string", "enum": ["a"]}
    assert messages(schema, 5) == ["5 is not allowed; it must be one of a"]
