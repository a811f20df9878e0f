"""A limit on the time of what a thread does. Whoever serves a request sets it once; every connection to the engine and to
the LLM servers keeps to it, also in calls that are added later. A thread that is started has no limit of its own."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

_ends_at: ContextVar[float] = ContextVar("ends_at", default=math.inf)
"""In the time of `time.monotonic`"""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Everything in the block must end within `seconds`; of nested limits the earliest counts. Not around a `yield` of a
    generator: the limit would also hold for whoever iterates it."""
    with _until(min(_ends_at.get(), time.monotonic() + seconds)):
        yield


@contextlib.contextmanager
def no_time_limit() -> Iterator[None]:
    """Lift the limit, for what must be done after the request's time has ended, such as cancelling its job."""
    with _until(math.inf):
        yield


@contextlib.contextmanager
def _until(moment: float) -> Iterator[None]:
    token = _ends_at.set(moment)
    try:
        yield
    finally:
        _ends_at.reset(token)


def remaining_s() -> float:
    """Seconds until the limit, never negative; infinite without one."""
    return max(0.0, _ends_at.get() - time.monotonic())


def limited(timeout_s: float | None) -> float | None:
    """`timeout_s` (None: none), but no longer than the remaining time. Raises TimeoutError if no time remains."""
    remaining = remaining_s()
    if remaining <= 0:
        raise TimeoutError("no time is left")
    if timeout_s is None:
        return None if math.isinf(remaining) else remaining
    return min(timeout_s, remaining)
