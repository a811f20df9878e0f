"""A body that must be a JSON object, read strictly: what JSON leaves open is refused rather than guessed."""

from __future__ import annotations

import json
from typing import Any

from flask import Request

from api.connection import read_body
from errors import InvalidRequest, NotJson

_DEEPEST = 50


def json_request(request: Request) -> dict[str, Any]:
    """The object in the body of a JSON route. Raises NotJson, InvalidRequest and what `read_body` raises."""
    require_json(request)
    return json_object(read_body(request))


def require_json(request: Request) -> None:
    """Raises NotJson for any other content type: a web page can send those without being asked first."""
    if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
        raise NotJson(f"This route takes JSON, not {request.mimetype or 'a body without Content-Type'}.")


def json_object(text: bytes) -> dict[str, Any]:
    """The object that `text` is. Raises InvalidRequest, also for a key given twice, NaN and what nests too deeply."""
    try:
        body = json.loads(
            text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice
        )
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON that can be read: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if is_deep(body):
        raise InvalidRequest("The body is nested too deeply.")
    return body


def is_deep(value: Any) -> bool:
    """Whether a value is nested deeper than any field needs: whoever walks through it may then do so by recursion."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [each for outer in level if isinstance(outer, dict | list) for each in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice in one object")
    return made
