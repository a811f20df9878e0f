"""Waiting for something that happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 180.0
"""Far more than anything here takes, also on a machine that is busy with other work."""


def wait_until(condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """The value of `condition` once it is true. Fails if it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)
    return value
