"""Decides when a silent job is lost or stuck, from the times of its events and the content of ComfyUI's queue. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from engine.values import QueueState
from errors import EngineError, EngineStalled, EngineUnreachable, JobLost


@dataclass(frozen=True)
class Limits:
    """How long each condition may last before the job fails, in seconds."""

    stall_timeout_s: float
    """The job is running but sends no events."""
    idle_timeout_s: float
    """The job is pending while the engine runs nothing."""
    unreachable_timeout_s: float
    """The engine refuses HTTP connections. An engine that accepts them but answers late gets `stall_timeout_s`, because
    loading a large model can block ComfyUI's event loop."""


class Watchdog:
    """Watches one job. Each check returns the error that is now certain, or None.

    Four kinds of request kill ComfyUI's only worker thread while HTTP still answers 200 and accepts jobs; it then runs
    nothing until it is restarted. Its queue shows a job that runs for ever, or no running job.
    """

    def __init__(self, prompt_id: str, limits: Limits, now: float) -> None:
        self._prompt_id = prompt_id
        self._limits = limits
        self._last_response_at = now
        self._last_event_at = now
        self.socket_lost = False
        """Whether the socket is gone, so that silence proves nothing"""
        self._idle_since: float | None = None
        self._absent_count = 0

    def on_event(self, now: float) -> None:
        """The socket delivered an event of this job."""
        self._last_event_at = self._last_response_at = now
        self._absent_count = 0

    def on_socket_lost(self) -> None:
        """The socket is gone: from now on the job cannot be called silent."""
        self.socket_lost = True

    def check_unreachable(self, now: float, error: EngineUnreachable) -> EngineError | None:
        """The engine did not answer a poll."""
        slow = error.details.get("slow")
        limit = self._limits.stall_timeout_s if slow else self._limits.unreachable_timeout_s
        if now - self._last_response_at < limit:
            return None
        if error.code != EngineUnreachable.code:
            return error  # what prevents the call was not ComfyUI
        return EngineUnreachable(
            f"ComfyUI stopped answering while the job ran: {error.message}",
            prompt_id=self._prompt_id,
            **error.details,
        )

    def check_queue(self, now: float, queue: QueueState, stuck: frozenset[str]) -> EngineError | None:
        """The job is not in history, and this is the queue. `stuck`: jobs that are known never to finish."""
        self._last_response_at = now
        if self._prompt_id in queue.running:
            return self._check_running(now)
        if self._prompt_id in queue.pending:
            return self._check_pending(now, idle=set(queue.running) <= stuck)
        return self._check_absent()

    def _check_running(self, now: float) -> EngineError | None:
        self._absent_count, self._idle_since = 0, None
        silent_s = now - self._last_event_at
        if self.socket_lost or silent_s < self._limits.stall_timeout_s:
            return None
        return self._stalled(f"ComfyUI lists the job as running, but sent no event for {silent_s:.0f} s.")

    def _check_pending(self, now: float, idle: bool) -> EngineError | None:
        self._absent_count = 0
        self._last_event_at = now
        if not idle:
            self._idle_since = None
            return None
        if self._idle_since is None:
            self._idle_since = now
        idle_s = now - self._idle_since
        if idle_s < self._limits.idle_timeout_s:
            return None
        return self._stalled(f"ComfyUI ran nothing for {idle_s:.0f} s, yet did not start the job.")

    def _check_absent(self) -> EngineError | None:
        """Lost only at the second time, because a job that ends between the poll of history and that of the queue is in
        neither."""
        self._absent_count += 1
        if self._absent_count < 2:
            return None
        return JobLost(
            "The job is neither in ComfyUI's queue nor in its history: it was deleted, or ComfyUI was restarted.",
            prompt_id=self._prompt_id,
        )

    def _stalled(self, message: str) -> EngineStalled:
        return EngineStalled(message, prompt_id=self._prompt_id)
