"""`{id}` and `{saved.x}` in a driver's calls, filled. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gpu_tenant import Resident
from llm.replies import MISSING, at

_PLACEHOLDER = re.compile(r"\{(id|saved(?:\.\w+)+)\}")


def fill_json(template: Any, resident: Resident | None) -> Any:
    """The template with its placeholders filled. A text that is nothing but one keeps the value's JSON type, and MISSING
    if there is none; inside objects and lists such members are left out."""
    return _filled(template, _values(resident))


def fill_path(template: str, resident: Resident | None) -> str:
    """A path with its query; what is put in is escaped, slashes too."""
    values = _values(resident)
    return _PLACEHOLDER.sub(lambda found: quote(_text(at(values, found[1])), safe=""), template)


def fill_text(template: str, resident: Resident) -> str:
    values = _values(resident)
    return _PLACEHOLDER.sub(lambda found: _text(at(values, found[1])), template)


def _values(resident: Resident | None) -> Mapping[str, Any]:
    return {"id": resident.id, "saved": resident.saved} if resident else {}


def _text(value: Any) -> str:
    return "" if value is MISSING else str(value)


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(template, Mapping):
        filled = {key: _filled(value, values) for key, value in template.items()}
        return {key: value for key, value in filled.items() if value is not MISSING}
    if isinstance(template, list):
        return [value for item in template if (value := _filled(item, values)) is not MISSING]
    if isinstance(template, str):
        whole = _PLACEHOLDER.fullmatch(template)
        if whole:
            return at(values, whole[1])
        return _PLACEHOLDER.sub(lambda found: _text(at(values, found[1])), template)
    return template
