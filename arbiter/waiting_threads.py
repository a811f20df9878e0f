"""The threads of this process that wait for a lease: until it is granted, the time is up, or an error ends the wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from arbiter.claim_queue import ClaimQueue
from arbiter.fair_queue import queue_position
from arbiter.leases import Claim, OwnClaim
from arbiter.policy import is_open, is_refused
from arbiter.state_store import StateStore
from arbiter.values import Policy
from arbiter.waiting import Waiting, seconds_until, waiting
from errors import EaselError, GpuBusy, GpuInGenerationMode, RequestCancelled, SwitchFailed

_CANCEL_CHECK_INTERVAL_S = 0.25
"""Between two checks whether a waiting request was cancelled"""
_MIN_POLL_INTERVAL_S, _POLL_STEP_S, _MAX_POLL_INTERVAL_S = 0.01, 0.02, 0.25
_MEASURE_INTERVAL_S = 1.0
"""Between two measurements of free memory (`coexist`), and between two checks that the state can be written"""
_WAIT_REPORT_DELAY_S = 0.25
"""A shorter wait is not reported"""
_WAIT_REPORT_INTERVAL_S = 5.0
_MAX_WOKEN = 4


class WaitReport:
    """Calls `on_wait` when what a request waits for has changed, and every few seconds."""

    def __init__(self, on_wait: Callable[[Waiting], None]) -> None:
        self._on_wait, self._last = on_wait, ""
        self._next_at = time.monotonic() + _WAIT_REPORT_DELAY_S

    def __call__(self, now_waiting: Waiting) -> None:
        now = time.monotonic()
        if now >= self._next_at or (self._last and now_waiting.waits_for != self._last):
            self._last, self._next_at = now_waiting.waits_for, now + _WAIT_REPORT_INTERVAL_S
            self._on_wait(now_waiting)


class WaitingThreads:
    """Those that wait in `queues`, of which the first is that of the GPU. `void_reason`: why a claim is void, or None.
    `available_bytes`: GPU memory that the engine could use now, None if unknown; it may raise an EaselError. `wake`:
    make the reconciler look at a new ticket."""

    def __init__(
        self,
        queues: Sequence[ClaimQueue],
        state_store: StateStore,
        policy: Policy,
        *,
        void_reason: Callable[[Claim], EaselError | None],
        available_bytes: Callable[[], int | None],
        wake: Callable[[], None],
    ) -> None:
        self._queues, self._state_store, self._policy = queues, state_store, policy
        self._void_reason, self._available_bytes, self._wake = void_reason, available_bytes, wake
        self._events: dict[str, threading.Event] = {}
        """job -> the event that wakes its thread"""
        self._stop_error: EaselError | None = None

    def wait(
        self,
        own_claim: OwnClaim,
        queue: ClaimQueue,
        started_at: float,
        timeout_s: float,
        cancelled: Callable[[], bool],
        on_wait: Callable[[Waiting], None],
    ) -> None:
        """Return when the ticket, which is in `queue`, has become a lease. `started_at`: of `time.monotonic`. Raises the
        errors of `Arbiter.lease`."""
        state, event = self._state_store.state(), threading.Event()
        last_ended = state.switch.number - (state.active_switch is not None) if state.switch else 0
        self._events[own_claim.claim.job] = event
        self._wake()
        next_cancel_check = next_measurement = started_at
        report = WaitReport(on_wait)
        try:
            while not queue.try_grant(own_claim):
                now = time.monotonic()
                if now >= next_cancel_check or self._stop_error is not None:
                    next_cancel_check = now + _CANCEL_CHECK_INTERVAL_S
                    self._raise_if_cancelled(own_claim.claim, cancelled)
                    situation = queue.situation(own_claim.claim.mode)
                    report(waiting(own_claim.claim, situation, now - started_at))
                if now >= next_measurement:
                    next_measurement = now + _MEASURE_INTERVAL_S
                    self._state_store.check_writable()
                    if queue.try_grant_coexisting(own_claim, self._read_available_bytes):
                        return
                self._raise_if_refused_or_failed(own_claim.claim, last_ended)
                if now - started_at >= timeout_s:
                    raise _timeout(queue, own_claim.claim)
                event.wait(
                    min(_poll_interval_s(queue, own_claim.claim), max(0.0, started_at + timeout_s - now))
                )
                event.clear()
        finally:
            self._events.pop(own_claim.claim.job, None)

    def wake_next(self) -> None:
        """Wake the first requests of each queue: it may be their turn."""
        if not self._events:
            return
        for queue in self._queues:
            for ticket in queue.order("generation")[:_MAX_WOKEN]:
                event = self._events.get(ticket.job)
                if event is not None:
                    event.set()

    def fail_all(self, error: EaselError) -> None:
        """Make every request that waits, now or later, fail with `error`."""
        self._stop_error = error
        for event in list(self._events.values()):
            event.set()

    def _read_available_bytes(self) -> int | None:
        try:
            return self._available_bytes()
        except EaselError:
            return None

    def _raise_if_cancelled(self, ticket: Claim, cancelled: Callable[[], bool]) -> None:
        if self._stop_error is not None:
            raise self._stop_error
        if cancelled():
            raise RequestCancelled("The request was cancelled while it waited for the GPU.")
        reason = self._void_reason(ticket)
        if reason is not None:
            raise reason

    def _raise_if_refused_or_failed(self, ticket: Claim, last_ended: int) -> None:
        """Raise if the policy refuses the request or its switch failed. `last_ended`: the number of the last switch
        that had ended when the request began to wait."""
        state = self._state_store.state()
        if is_refused(state, ticket.mode, self._policy):
            raise GpuInGenerationMode(
                "ComfyUI has the GPU" + (", and generation mode is pinned." if state.pinned else "."),
                retry_after_s=self._seconds_until_gpu(ticket),
            )
        switch = state.switch
        if switch is None or not switch.error or not switch.ended:
            return
        if switch.number > last_ended and switch.target == ticket.mode:
            raise SwitchFailed(
                f"The GPU could not be handed over, {switch.error['phase']} failed: {switch.error['message']}",
                target=ticket.mode,
                phase=switch.error["phase"],
                cause=switch.error["code"],
                retry_after_s=self._seconds_until_gpu(ticket),
            )

    def _seconds_until_gpu(self, ticket: Claim) -> int | None:
        return seconds_until(ticket.mode, ticket, self._queues[0].situation(ticket.mode))


def _poll_interval_s(queue: ClaimQueue, ticket: Claim) -> float:
    """Longer at the back of the queue. A request whose turn comes through this process is woken earlier."""
    if ticket.mode == "inference":
        return _POLL_STEP_S
    return min(_MAX_POLL_INTERVAL_S, _MIN_POLL_INTERVAL_S + _POLL_STEP_S * queue.position(ticket))


def _timeout(queue: ClaimQueue, ticket: Claim) -> GpuBusy:
    situation = queue.situation(ticket.mode)
    is_queued = is_open(situation.state, ticket.mode)
    reason = "other requests came first" if is_queued else "it was not handed over in time"
    return GpuBusy(
        f"The GPU was not free in time: {reason}.",
        place=queue_position(situation.claims, ticket, situation.turns),
        retry_after_s=seconds_until(ticket.mode, ticket, situation),
    )
