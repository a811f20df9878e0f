"""Runs a function on several items at the same time, so that the slowest item determines the duration."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_THREADS = 16


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results in the order of `items`. Waits for all of them, then raises the first error. The time limit of this
    thread holds for all of them."""
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), _MAX_THREADS), thread_name_prefix="llm") as pool:
        tasks = [pool.submit(contextvars.copy_context().run, function, item) for item in items]
        return [task.result() for task in tasks]


def parallel_within(
    function: Callable[[Item], Result], items: Sequence[Item], timeout_s: float
) -> list[Result | None]:
    """The results in the order of `items`; None for those that were not there within `timeout_s` or raised. Their
    threads end by themselves, also beyond the time limit of this thread."""
    results: list[Result | None] = [None] * len(items)

    def run(index: int) -> None:
        results[index] = function(items[index])

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(items))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(results)
