"""Decides when a job that says nothing is lost or stuck, from what ComfyUI's queue showed and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from engine.values import QueueState
from errors import EngineError, EngineStalled, EngineUnreachable, JobLost


@dataclass(frozen=True)
class Limits:
    """Seconds that a job may stay without a sign, by what is missing."""

    stall_s: float
    """Running, but silent."""
    idle_s: float
    """Pending, while the engine runs nothing."""
    gone_s: float
    """Nobody takes HTTP connections. One that takes them but answers late is given `stall_s`: loading a large model can
    hold up ComfyUI's event loop."""


class Watchdog:
    """One for each job. Each look gives the error that is now certain, or None.

    Four shapes of a request kill ComfyUI's only worker while HTTP goes on answering 200 and accepting jobs; it then
    runs nothing until it is restarted. Its queue shows a running job for ever, or none at all.
    """

    def __init__(self, prompt_id: str, limits: Limits, now: float) -> None:
        self._prompt_id = prompt_id
        self._limits = limits
        self._answered_at = now
        self._heard_at = now
        self._hears = True
        self._idle_since: float | None = None
        self._absent = 0

    def heard(self, now: float) -> None:
        """The socket brought something about this job."""
        self._heard_at = self._answered_at = now
        self._absent = 0

    def deaf(self) -> None:
        """The socket is gone: from now on silence says nothing."""
        self._hears = False

    @property
    def is_deaf(self) -> bool:
        """Whether the socket is gone."""
        return not self._hears

    def unanswered(self, now: float, error: EngineUnreachable) -> EngineError | None:
        limit = self._limits.stall_s if error.details.get("slow") else self._limits.gone_s
        if now - self._answered_at < limit:
            return None
        return EngineUnreachable(
            f"ComfyUI went away while the job ran: {error.message}",
            prompt_id=self._prompt_id,
            **error.details,
        )

    def saw(self, now: float, queue: QueueState, stuck: frozenset[str]) -> EngineError | None:
        """The job is not in history, and this is the queue. `stuck`: jobs that run for ever, as we know already."""
        self._answered_at = now
        if self._prompt_id in queue.running:
            return self._saw_running(now)
        if self._prompt_id in queue.pending:
            return self._saw_pending(now, idle=set(queue.running) <= stuck)
        return self._saw_nothing()

    def _saw_running(self, now: float) -> EngineError | None:
        self._absent, self._idle_since = 0, None
        silent = now - self._heard_at
        if not self._hears or silent < self._limits.stall_s:
            return None
        return self._stalled(f"ComfyUI says that it runs the job, but was silent for {silent:.0f} s.")

    def _saw_pending(self, now: float, idle: bool) -> EngineError | None:
        self._absent = 0
        self._heard_at = now
        if not idle:
            self._idle_since = None
            return None
        if self._idle_since is None:
            self._idle_since = now
        waited = now - self._idle_since
        if waited < self._limits.idle_s:
            return None
        return self._stalled(f"ComfyUI ran nothing for {waited:.0f} s, yet did not start the job.")

    def _saw_nothing(self) -> EngineError | None:
        """Twice, because a job that ends between the look into history and the one into the queue is in neither."""
        self._absent += 1
        if self._absent < 2:
            return None
        return JobLost(
            "The job is neither in ComfyUI's queue nor in its history: it was deleted, or ComfyUI was restarted.",
            prompt_id=self._prompt_id,
        )

    def _stalled(self, message: str) -> EngineStalled:
        return EngineStalled(message, prompt_id=self._prompt_id)
