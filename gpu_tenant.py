"""The interface between the arbiter and a user of the GPU (the LLM stacks, the engine). A leaf module, because the
packages that share it do not import each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Resident:
    """Something in GPU memory: `id` as its `owner` (a stack's name) calls it. `saved` is what the owner needs to load
    it again: plain JSON, never a secret."""

    owner: str
    id: str
    saved: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """One thing that could not be loaded again, with the reason, written for the person who must fix it."""

    owner: str
    id: str
    message: str


class Tenant(Protocol):
    """One user of the GPU. Every call is level-triggered: it may be repeated, by another process, after a crash.

    Every method may raise an EaselError. What is resident is then unknown; callers must not treat it as empty.
    """

    def resident(self) -> tuple[Resident, ...]:
        """What holds GPU memory now, including what is loading or sleeping."""

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        """The part of `resident` that can be found out in time. Never raises; what is not listed may be resident all the
        same."""

    def busy(self) -> int | None:
        """The number of running and queued requests, from any client; None if it cannot be determined."""

    def release(self, residents: Sequence[Resident]) -> None:
        """Ask the tenant to unload these. They are unloaded when `resident` no longer lists them, not when this
        returns."""

    def restore(self, residents: Sequence[Resident], is_cancelled: Callable[[], bool]) -> tuple[Failure, ...]:
        """Load these again and wait until it is done, or until `is_cancelled`, which is asked before each. Returns what
        could not be loaded; one failure does not stop the others."""

    def cancel_jobs(self, jobs: Sequence[str] | None) -> bool:
        """Ask to cancel these jobs, by id; None: all jobs, from any client. Does not wait. Returns whether none of them is
        running or queued any more; until then the caller asks again, because the tenant may lose a request."""
