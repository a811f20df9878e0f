"""Runs a function on several items at the same time, so that the slowest item determines the duration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_THREADS = 16


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results in the order of `items`. Waits for all of them, then raises the first error."""
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), _MAX_THREADS), thread_name_prefix="llm") as pool:
        return [task.result() for task in [pool.submit(function, item) for item in items]]
