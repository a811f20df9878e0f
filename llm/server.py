"""The five operations of an LLM server, as a protocol, and the time limits of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from errors import StackUnreachable
from gpu_tenant import Failure, Resident


@dataclass(frozen=True)
class Limits:
    """Timeouts in seconds: of a query, of unloading one model, of loading one model until it is ready."""

    call_s: float
    unload_s: float
    load_s: float


class ServerNotRunning(StackUnreachable):
    """A loopback address refused the connection: the server's process is not running, so no model is loaded."""


class NoResponse(StackUnreachable):
    """The server accepted the connection but sent no complete response in time; it may still carry out the call."""


class LlmServer(Protocol):
    """Each operation may raise StackUnreachable or StackRefused; `load` returns failures per model if it can."""

    def health(self) -> None:
        """Returns if the server responds."""

    def list(self) -> tuple[Resident, ...]:
        """What holds GPU memory. Empty only if it is certain that nothing does."""

    def identity(self, resident: Resident) -> Hashable:
        """What stays the same when a model is loaded again; its id may change."""

    def busy(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        """The number of running and queued requests, and of models that are being loaded; None if the server does not
        report it. `residents` is called only if the server must be queried per model."""

    def unload(self, residents: Sequence[Resident]) -> None: ...

    def load(self, residents: Sequence[Resident], is_cancelled: Callable[[], bool]) -> tuple[Failure, ...]:
        """Load the models that are not loaded yet and wait until they are ready. Stops before a model if `is_cancelled`."""


def poll_with_backoff(deadline: float) -> Iterator[float]:
    """Yields the seconds left until the monotonic time `deadline`: immediately, then after sleeps that grow from 0.02 s
    to 1 s. Ends at the deadline."""
    delay_s = 0.02
    while (left_s := deadline - time.monotonic()) > 0:
        yield left_s
        time.sleep(max(0.0, min(delay_s, deadline - time.monotonic())))
        delay_s = min(delay_s * 1.5, 1.0)
