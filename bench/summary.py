"""Summarizes repeated measurements. Reports lead with the median, so that a single outlier does not change a result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any


def summarize(values: Iterable[float]) -> dict[str, Any]:
    """Median, 95th percentile, and the values themselves."""
    rounded = [round(value, 7) for value in values]
    return {"median": statistics.median(rounded), "p95": _percentile(rounded, 0.95), "values": rounded}


def repeat(measure: Callable[[], float], times: int, budget_s: float) -> list[float]:
    """The results of up to `times` calls. No call starts after `budget_s`; there is at least one."""
    deadline, values = time.monotonic() + budget_s, [measure()]
    while len(values) < times and time.monotonic() < deadline:
        values.append(measure())
    return values


def _percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
