"""A cell of the comparison: what was measured, or why nothing was."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

Cell = dict[str, Any]


def not_aim(why: str) -> Cell:
    """The program does not set out to do this."""
    return {"status": "not its aim", "why": why}


def not_measured(why: str) -> Cell:
    return {"status": "not measured", "why": why}


def _rounded(value: Any) -> Any:
    """Microseconds are noise."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return {name: _rounded(each) for name, each in value.items()} if isinstance(value, dict) else value


def measured(measure: Callable[[], dict[str, Any]]) -> Cell:
    """The values, or the error that kept the program from measuring."""
    try:
        return {"status": "measured", "values": _rounded(measure())}
    except Exception as error:
        traceback.print_exc()
        return not_measured(f"{type(error).__name__}: {error}"[:200])
