"""Whether Redis was away a moment ago, or so slow that heartbeats have expired in it which were sent in vain: what is
missing in it says nothing then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

COUNTS_S = 5.0
"""So long after an outage others may not have said yet that they are there"""
SLOW_S = 2.0
"""Between two answers. A heartbeat is sent each second and expires after 3.5 s: an outage of 2.5 s can hide it"""


class Outages:
    """As one thread sees them that asks Redis at least once a second. Other threads may ask `were_lately`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered_at, self._ended_at = clock(), -math.inf

    def failed(self) -> None:
        """Redis did not answer, or with an error."""
        self._ended_at = self._clock()

    def answered(self) -> None:
        """It answered."""
        if self._is_slow():
            self._ended_at = self._clock()
        self._answered_at = self._clock()

    def were_lately(self) -> bool:
        return self._clock() - self._ended_at < COUNTS_S or self._is_slow()

    def _is_slow(self) -> bool:
        return self._clock() - self._answered_at > SLOW_S
