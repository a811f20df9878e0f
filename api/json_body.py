"""Strict parsing of JSON bodies: duplicate keys, NaN, deep nesting and very many values are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from flask import Request

from api.connection import read_body
from errors import InvalidRequest, NotJson

MAX_VALUES = 10_000
"""Limit of the values in one body. The largest requests have some hundred; checking millions would take a minute."""
_MAX_NESTING = 50
_STRING_OR_COMMA = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|,', re.DOTALL)


def json_request(request: Request) -> dict[str, Any]:
    """The object in the body of a JSON route. Raises NotJson, InvalidRequest and what `read_body` raises."""
    require_json(request)
    return json_object(read_body(request))


def require_json(request: Request) -> None:
    """Raises NotJson for other content types: a web page could send those without a CORS preflight."""
    if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
        raise NotJson(f"This route accepts JSON, not {request.mimetype or 'a body without Content-Type'}.")


def json_object(text: bytes, *, has_history: bool = False) -> dict[str, Any]:
    """Parse `text`. Raises InvalidRequest unless it is a JSON object without duplicate keys, NaN, deep nesting and more
    than 10,000 values. With `has_history`, a conversation is in it, which may be long: call `require_few_values` for
    what is used of it."""
    if not has_history and has_too_many_values(text):
        raise _too_many_values()
    try:
        body = json.loads(
            text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicate_keys
        )
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if is_nested_too_deeply(body):
        raise InvalidRequest("The body is nested too deeply.")
    return body


def require_few_values(fields: Mapping[str, Any]) -> None:
    """Raises InvalidRequest if there are more than 10,000 values in `fields`, which were parsed without this limit."""
    texts = {name: value for name, value in fields.items() if not isinstance(value, str)}
    if len(fields) > MAX_VALUES or has_too_many_values(json.dumps(texts).encode()):
        raise _too_many_values()


def _too_many_values() -> InvalidRequest:
    return InvalidRequest(f"The body has more than {MAX_VALUES} values.", limit=MAX_VALUES)


def has_too_many_values(text: bytes) -> bool:
    """Whether a JSON text has more than 10,000 values, found out before it is parsed."""
    if text.count(b",") < MAX_VALUES:
        return False
    # Commas in strings do not count. Whether the text is valid does not matter here, only that the loop is short.
    commas = strings = 0
    for match in _STRING_OR_COMMA.finditer(text):
        if match[0] == b",":
            commas += 1
        else:
            strings += 1
        if commas >= MAX_VALUES or strings > 2 * MAX_VALUES:
            return True
    return False


def is_nested_too_deeply(value: Any) -> bool:
    """Whether a value is nested more than 50 levels deep. No field needs more, and below this limit recursion is safe."""
    level = [value]
    for _ in range(_MAX_NESTING):
        level = [child for parent in level if isinstance(parent, dict | list) for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object contains the same key twice")
    return result
