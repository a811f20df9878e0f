"""Tells a job that somebody interrupted from one whose engine is ending: an engine that gets SIGTERM may report its job as
interrupted before it goes."""

from __future__ import annotations

import time
from collections.abc import Callable

from deadline import time_limit
from engine import Engine
from errors import EngineUnreachable

ENDING_S = 3.0
"""How soon after that report an engine that is ending answers no more"""
_LOOK_INTERVAL_S = 0.2


def is_ending(
    engine: Engine,
    cancelled: Callable[[], bool],
    *,
    within_s: float = ENDING_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether `engine`, which has just reported an interruption, answers no more within some seconds. Looks until then, or
    until the caller has cancelled, so call it only if that makes a difference."""
    deadline, answers = clock() + within_s, True
    while (remaining_s := deadline - clock()) > 0 and not cancelled():
        try:
            with time_limit(remaining_s):
                engine.stats()
            answers = True
        except EngineUnreachable as error:
            # One that is only slow may answer the next look.
            if not error.details.get("slow"):
                return True
            answers = False
        sleep(_LOOK_INTERVAL_S)
    return not answers and not cancelled()
