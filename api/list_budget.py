"""How much of the processor the lists and searches of each caller may take, so that one that searches without end leaves
room for the pictures and the lists of others.

Not the limits of keys: a page that is scrolled reads many lists, which are cheap, and would use up a key's requests."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from errors import ListLimitReached

BURST_S = 5.0
"""Seconds of one processor that a caller may use at once; a page of the gallery takes some milliseconds"""
SHARE = 0.25
"""Of one processor, in each worker, that a caller may use for as long as it likes"""
_RESERVED_S = 0.25
"""While a list is made it is not known what it will take; so many at once are bounded too"""
_MAX_CALLERS = 1000


@dataclass(slots=True)
class _Account:
    left_s: float
    at: float


class ListBudget:
    """One per process; thread-safe. `clock`: seconds; `used`: seconds of processor that the present thread has used."""

    def __init__(
        self,
        *,
        burst_s: float = BURST_S,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._burst_s, self._share, self._clock, self._used = burst_s, share, clock, used
        self._lock = threading.Lock()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    @contextmanager
    def spending(self, owner: str) -> Iterator[None]:
        """What the block uses is counted for `owner`, see `Caller.owner`. Raises ListLimitReached if that caller has used
        its share."""
        self._reserve(owner)
        before = self._used()
        try:
            yield
        finally:
            used_s = self._used() - before
            with self._lock:
                account = self._account(owner)
                # Never so far below zero that the wait would be longer than for a whole burst
                account.left_s = max(account.left_s + _RESERVED_S - used_s, -self._burst_s)

    def _reserve(self, owner: str) -> None:
        with self._lock:
            account = self._account(owner)
            if account.left_s <= 0:
                wait_s = math.ceil((_RESERVED_S - account.left_s) / self._share)
                raise ListLimitReached(
                    f"Lists of images for this caller have used {self._burst_s:g} s of the processor, and may use "
                    f"{self._share:.0%} of it from then on. Try again in {wait_s} s.",
                    retry_after_s=wait_s,
                )
            account.left_s -= _RESERVED_S

    def _account(self, owner: str) -> _Account:
        """With what has been earned until now. The one that was used longest ago is forgotten."""
        now = self._clock()
        account = self._accounts.pop(owner, None) or _Account(self._burst_s, now)
        account.left_s = min(self._burst_s, account.left_s + (now - account.at) * self._share)
        account.at = now
        self._accounts[owner] = account
        if len(self._accounts) > _MAX_CALLERS:
            self._accounts.popitem(last=False)
        return account
