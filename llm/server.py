"""What a stack is to this room: five verbs, whoever carries them out, and the times that they may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpu_tenant import Failure, Resident


@dataclass(frozen=True)
class Limits:
    """Seconds: of a plain question, of letting one model go, of getting one back until it is ready."""

    call_s: float
    unload_s: float
    load_s: float


class Server(Protocol):
    """Each verb may raise StackUnreachable or StackRefused; `load` tells per model instead, where it can."""

    def health(self) -> None:
        """Returns if the server answers."""

    def list(self) -> tuple[Resident, ...]:
        """What holds memory; nothing only if that is certain."""

    def busy(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        """Requests running and queued; `residents` is called where it must be asked by model. None if it cannot be told."""

    def unload(self, residents: Sequence[Resident]) -> None: ...

    def load(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        """Load what is not there yet and wait until it is ready."""


def poll_with_backoff(until: float) -> Iterator[float]:
    """Gives the seconds that are left until the monotonic time `until`, once at once, then ever more rarely; ends after."""
    pause_s = 0.02
    while (left := until - time.monotonic()) > 0:
        yield left
        time.sleep(max(0.0, min(pause_s, until - time.monotonic())))
        pause_s = min(pause_s * 1.5, 1.0)
