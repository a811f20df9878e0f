"""What a server's response contains: fields by path, entries of lists, metrics, events. Pure; knows no server.

It sums Prometheus samples and reads event streams itself: a few lines each, and malformed lines are skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Final


class WrongShape(ValueError):
    """A response is not built as its driver describes. The message names the field, never its content."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()

Conditions = Mapping[str, Collection[Any]]
"""Allowed values by the path of a field; all of them must hold."""


def parse_json(body: bytes) -> Any:
    """The JSON value, or MISSING if the body is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return MISSING


def field_at(value: Any, path: str) -> Any:
    """The field at a path such as `status.value`, or MISSING; the empty path is the value itself."""
    for step in path.split(".") if path else ():
        if not isinstance(value, Mapping) or step not in value:
            return MISSING
        value = value[step]
    return value


def entries_at(body: Any, path: str) -> list[tuple[Any, Mapping[str, Any]]]:
    """Parent and entry of each object in the list at `path`; `a[].b` means the lists `b` of all objects in `a`.

    Raises WrongShape if a list is missing or contains something other than objects.
    """
    *outer, last = path.split("[].")
    parents = [body]
    for step in outer:
        parents = [entry for parent in parents for entry in _objects(parent, step)]
    return [(parent, entry) for parent in parents for entry in _objects(parent, last)]


def _objects(parent: Any, path: str) -> list[Mapping[str, Any]]:
    entries = field_at(parent, path)
    if not isinstance(entries, list):
        raise WrongShape(f"there is no list `{path}`")
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise WrongShape(f"`{path}` contains something other than objects")
    return entries


def meets(entry: Any, conditions: Conditions) -> bool:
    return all(_is_one_of(field_at(entry, path), values) for path, values in conditions.items())


def require_fields(entry: Any, conditions: Conditions) -> None:
    """Raises WrongShape if a field that the conditions test is missing."""
    for path in conditions:
        if field_at(entry, path) is MISSING:
            raise WrongShape(f"an entry has no `{path}`")


def _is_one_of(value: Any, allowed: Collection[Any]) -> bool:
    # True equals 1 in Python, but not in JSON.
    return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in allowed)


def prometheus_sum(text: str, names: Collection[str]) -> float | None:
    """The sum of these metrics over all their labels; None if the text contains none of them."""
    values = []
    for line in text.splitlines():
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        if name.strip() in names:
            values.append(_number(rest.rpartition("}")[2].split()))
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) if finite else None


def _number(fields: list[str]) -> float:
    try:
        return float(fields[0])
    except (ValueError, IndexError):
        return math.nan


def event_objects(body: bytes) -> list[Mapping[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    lines = body.decode("utf-8", "replace").splitlines()
    values = [parse_json(line.removeprefix("data:").encode()) for line in lines if line.startswith("data:")]
    return [value for value in values if isinstance(value, Mapping)]
