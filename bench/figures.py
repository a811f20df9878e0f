"""Many measured values told in few: the median first, for one hiccup of the machine must not move a figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median and 95th percentile, and the values themselves."""
    kept = [round(value, 7) for value in values]
    return {"median": statistics.median(kept), "p95": _percentile(kept, 0.95), "values": kept}


def repeated(do: Callable[[], float], times: int, budget_s: float) -> list[float]:
    """What `do` gives, so many times, or as often as it begins within `budget_s`; once at least."""
    until, values = time.monotonic() + budget_s, [do()]
    while len(values) < times and time.monotonic() < until:
        values.append(do())
    return values


def _percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
