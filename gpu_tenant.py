"""What the arbiter sees of a user of the GPU: LLM stacks and the engine are two of them. A leaf, because those who meet
this protocol do not know each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Resident:
    """Something in GPU memory: `id` as its `owner` (a stack's name) calls it. `saved` is what the owner wants to have
    back to load it again: plain JSON, never a secret."""

    owner: str
    id: str
    saved: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """One thing that could not be loaded again, and why, in words for the person who must fix it."""

    owner: str
    id: str
    message: str


class Tenant(Protocol):
    """One user of the GPU. Every call is level-triggered: it may come twice, from another process, after a crash.

    Any of them may raise an EaselError: what is resident is then not known, and nobody may act as if it were nothing.
    """

    def resident(self) -> tuple[Resident, ...]:
        """What holds GPU memory now, loading and sleeping things included."""

    def busy(self) -> int | None:
        """How many requests it works on or has queued, whoever sent them; None when it cannot tell."""

    def release(self, residents: Sequence[Resident]) -> None:
        """Ask it to let go of these. Done is what `resident` says, not that this returned."""

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        """Get these back and wait for it; what could not be is told, one by one, and keeps nobody else from it."""

    def drop(self, jobs: Sequence[str] | None) -> None:
        """Take back what it does for these jobs, by their ids; None: everything, whoever asked for it. Does not wait."""
