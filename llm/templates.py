"""Fills the placeholders `{id}` and `{saved.x}` in a driver's calls. Pure.

It fills them itself: `str.format` would fail on other braces, and a value must keep its JSON type or be left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gpu_tenant import Resident
from llm.responses import MISSING, field_at

_PLACEHOLDER = re.compile(r"\{(id|saved(?:\.\w+)+)\}")


def fill_json(template: Any, resident: Resident | None) -> Any:
    """The template with its placeholders filled. A text that consists of one placeholder becomes the value in its own
    JSON type, or MISSING if there is no such value; objects and lists omit missing members."""
    return _fill(template, _values(resident))


def fill_path(template: str, resident: Resident | None) -> str:
    """A path and query; inserted values are percent-encoded, slashes too."""
    values = _values(resident)
    return _PLACEHOLDER.sub(lambda match: quote(_text(field_at(values, match[1])), safe=""), template)


def fill_text(template: str, resident: Resident) -> str:
    return _fill_text(template, _values(resident))


def _values(resident: Resident | None) -> Mapping[str, Any]:
    return {"id": resident.id, "saved": resident.saved} if resident else {}


def _text(value: Any) -> str:
    return "" if value is MISSING else str(value)


def _fill_text(template: str, values: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda match: _text(field_at(values, match[1])), template)


def _fill(template: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(template, Mapping):
        members = {key: _fill(value, values) for key, value in template.items()}
        return {key: value for key, value in members.items() if value is not MISSING}
    if isinstance(template, list):
        return [value for item in template if (value := _fill(item, values)) is not MISSING]
    if isinstance(template, str):
        whole = _PLACEHOLDER.fullmatch(template)
        return field_at(values, whole[1]) if whole else _fill_text(template, values)
    return template
