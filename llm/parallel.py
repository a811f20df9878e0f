"""The same question to several at once, so that the slowest one sets the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")

_MOST_THREADS = 16


def ask_all(question: Callable[[Given], Result], of: Sequence[Given]) -> list[Result]:
    """The results in the order of `of`. Waits for all of them, then raises the first error that one raised."""
    if len(of) <= 1:
        return [question(one) for one in of]
    with ThreadPoolExecutor(min(len(of), _MOST_THREADS), thread_name_prefix="llm") as pool:
        return [task.result() for task in [pool.submit(question, one) for one in of]]
