"""What a server's reply says: fields by their paths, entries of lists, metrics, events. Pure; knows no server."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Final


class WrongShape(ValueError):
    """A reply is not built as its driver says. The message names the place, never the content."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()

Conditions = Mapping[str, Collection[Any]]
"""Allowed values by the path of a field; all of them must hold."""


def as_json(body: bytes) -> Any:
    """The JSON value, or MISSING if this is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return MISSING


def at(value: Any, path: str) -> Any:
    """The field at a path such as `status.value`, or MISSING; the empty path is the value itself."""
    for step in path.split(".") if path else ():
        if not isinstance(value, Mapping) or step not in value:
            return MISSING
        value = value[step]
    return value


def entries_at(body: Any, path: str) -> list[tuple[Any, Mapping[str, Any]]]:
    """Parent and entry of each object in the list at `path`; `a[].b` are the lists `b` of all the objects in `a`.

    Raises WrongShape where a list, or an object in it, is something else.
    """
    *outer, last = path.split("[].")
    parents = [body]
    for step in outer:
        parents = [entry for parent in parents for entry in _objects(parent, step)]
    return [(parent, entry) for parent in parents for entry in _objects(parent, last)]


def _objects(parent: Any, path: str) -> list[Mapping[str, Any]]:
    found = at(parent, path)
    if not isinstance(found, list):
        raise WrongShape(f"there is no list `{path}`")
    if not all(isinstance(entry, Mapping) for entry in found):
        raise WrongShape(f"`{path}` lists something else than objects")
    return found


def meets(entry: Any, conditions: Conditions) -> bool:
    return all(_is_one_of(at(entry, path), values) for path, values in conditions.items())


def must_tell(entry: Any, conditions: Conditions) -> None:
    """Raises WrongShape if a field that the conditions look at is not there."""
    for path in conditions:
        if at(entry, path) is MISSING:
            raise WrongShape(f"an entry has no `{path}`")


def _is_one_of(value: Any, values: Collection[Any]) -> bool:
    # True is 1 to Python, not to JSON.
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def prometheus_sum(text: str, names: Collection[str]) -> float | None:
    """The sum of these metrics over all their labels; None if none of them is there."""
    values = []
    for line in text.splitlines():
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        if name.strip() in names:
            values.append(_number(rest.rpartition("}")[2].split()))
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) if finite else None


def _number(words: list[str]) -> float:
    try:
        return float(words[0])
    except (ValueError, IndexError):
        return math.nan


def event_objects(body: bytes) -> list[Mapping[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    lines = body.decode("utf-8", "replace").splitlines()
    values = [as_json(line.removeprefix("data:").encode()) for line in lines if line.startswith("data:")]
    return [value for value in values if isinstance(value, Mapping)]
