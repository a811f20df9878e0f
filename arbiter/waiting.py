"""What a request waits for and how long: for streams, the status and `Retry-After`. Pure, as the policy is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arbiter.fair_queue import queue_position
from arbiter.leases import Claim
from arbiter.policy import (
    Situation,
    has_failed_late,
    idle_restore_at,
    is_open,
    may_trigger_switch,
    remaining_stay_s,
    select,
)
from arbiter.values import Mode, Pace, State, other_mode
from gpu_tenant import Resident


@dataclass(frozen=True)
class Waiting:
    """What a request waits for, as a text for people and as a code with values, for programs that say it in another
    language; since when, in seconds; how much longer, if that is known; and how many requests come before it."""

    waits_for: str
    reason: Mapping[str, Any]
    waited_s: float
    expected_s: int | None
    place: int


def waiting(ticket: Claim, situation: Situation, waited_s: float) -> Waiting:
    """What the request with `ticket` waits for."""
    waits_for, reason = _waits_for(ticket, situation)
    return Waiting(
        waits_for,
        reason,
        round(max(0.0, waited_s), 1),
        seconds_until(ticket.mode, ticket, situation),
        queue_position(situation.claims, ticket, situation.turns),
    )


def waiting_in_engine(before: int, pace: Pace, waited_s: float) -> Waiting:
    """What a job waits for that has its lease and is behind `before` other jobs in the engine's queue."""
    expected_s = math.ceil(before * pace.seconds_each) if pace.jobs else None
    waits_for, reason = pictures_before(before)
    return Waiting(waits_for, reason, round(max(0.0, waited_s), 1), expected_s, before)


def because(text: str, code: str, **values: Any) -> tuple[str, Mapping[str, Any]]:
    """What a request waits for, as `Waiting` has it. `docs/api.md` lists the codes, and the page has a text for each."""
    return text, {"code": code, **values}


def pictures_before(count: int) -> tuple[str, Mapping[str, Any]]:
    """For jobs of the same queue."""
    text = "the picture before it" if count == 1 else f"{count} pictures before it"
    return because(text, "pictures_before", count=count)


def _waits_for(ticket: Claim, situation: Situation) -> tuple[str, Mapping[str, Any]]:
    """A text and its code with values."""
    state, claims = situation.state, situation.claims
    if state.active_switch is not None:
        return _waits_for_switch(state)
    if is_open(state, ticket.mode):
        before = queue_position(claims, ticket, situation.turns) + len(select(claims, "lease", ticket.mode))
        return pictures_before(before)
    if state.pinned:
        return because("the pin of generation mode to end", "pin")
    if has_failed_late(state) and remaining_stay_s(situation):
        seconds = math.ceil(remaining_stay_s(situation))
        text = f"another attempt to hand the GPU over, {seconds} s after a failure"
        return because(text, "retry_after_failure", seconds=seconds)
    if ticket.mode == "generation":
        return because("LLM requests", "llm_requests")
    return because("pictures", "pictures")


def _waits_for_switch(state: State) -> tuple[str, Mapping[str, Any]]:
    switch, names = state.active_switch, _names(state.saved)
    assert switch is not None
    if switch.phase == "draining":
        if switch.target == "generation":
            return because("running LLM requests to end", "running_llm_requests")
        return because("running pictures to end", "running_pictures")
    if switch.phase == "restoring":
        text = f"the LLMs to be loaded: {names}" if names else "the LLMs to be loaded"
        return because(text, "llms_loading", names=names)
    if switch.phase == "starting":
        return because("ComfyUI to start", "comfyui_starting")
    if switch.target == "generation":
        if names:
            return because(f"the LLMs to be unloaded: {names}", "llms_unloading", names=names)
        return because("the GPU", "gpu")
    return because("ComfyUI to unload its models", "comfyui_unloading")


def _names(residents: tuple[Resident, ...]) -> str:
    return ", ".join(f"{item.owner}/{item.id}" for item in residents)


DEFAULT_SWITCH_S = 15.0
"""How long a switch is assumed to take until one was measured"""


def seconds_until(mode: Mode, ticket: Claim | None, situation: Situation) -> int | None:
    """The value of `Retry-After`: how long until a request for `mode` can run, in whole seconds, from 1 to
    `max_retry_after_s`. None if unknown. `ticket`: that of the request, if it has one.
    """
    state = situation.state
    seconds = _seconds_ahead(ticket, situation) if mode == "generation" else 0.0
    if state.mode != mode or state.active_switch is not None:
        until_switched_s = seconds_until_switched(mode, situation)
        if until_switched_s is None:
            return None
        seconds += until_switched_s
    return math.ceil(min(max(1.0, seconds), situation.policy.max_retry_after_s))


def _seconds_ahead(ticket: Claim | None, situation: Situation) -> float:
    """How long the pictures before `ticket`, or before a new request, will take."""
    claims = situation.claims
    if ticket is not None:
        ahead = queue_position(claims, ticket, situation.turns)
    else:  # until all of the queue is done: before that a new request may find no place
        ahead = len(select(claims, "ticket", "generation")) + situation.later_jobs
    # The engine runs one job at a time, at any depth.
    return _seconds_for(ahead + len(select(claims, "lease", "generation")), situation.pace)


def _seconds_for(jobs: int, pace: Pace) -> float:
    """How long the engine needs for so many jobs. Until one was timed, only the first is counted."""
    return (jobs if pace.jobs else min(jobs, 1)) * pace.seconds_each


def seconds_until_switched(mode: Mode, situation: Situation) -> float | None:
    """How long until the GPU is in `mode`, if it is not or a switch is active; None if unknown."""
    state, policy, now = situation.state, situation.policy, situation.now
    switch_s = state.took_s.get(mode, DEFAULT_SWITCH_S)
    if state.active_switch is not None and state.active_switch.target == mode:
        # One that takes longer than usual is expected to take as long again.
        elapsed_s = max(0.0, now - state.active_switch.began)
        return (
            max(1.0, switch_s - elapsed_s) if elapsed_s < switch_s else min(elapsed_s, policy.drain_timeout_s)
        )
    if state.active_switch is not None:  # it switches to the other mode first
        stay_s = _expected_stay_s(situation, other_mode(mode), policy.min_stay_s)
        switch_s += state.took_s.get(other_mode(mode), DEFAULT_SWITCH_S)
    elif has_failed_late(state):
        stay_s = remaining_stay_s(situation)
    else:
        stay_s = _expected_stay_s(situation, state.mode, remaining_stay_s(situation))
    if state.pinned:
        return None
    running_s = _seconds_for(len(select(situation.claims, "lease", "generation")), situation.pace)
    if may_trigger_switch(mode, policy):
        return max(running_s, stay_s) + switch_s
    restore_at = idle_restore_at(situation)
    if restore_at is None:
        return None
    queued_s = _seconds_for(sum(claim.mode == "generation" for claim in situation.claims), situation.pace)
    return queued_s + max(restore_at - now, stay_s) + switch_s


def _expected_stay_s(situation: Situation, mode: Mode, minimum_s: float) -> float:
    """How long requests for `mode` keep the GPU from the other mode: until they are done, or the minimum stay is over."""
    jobs = sum(claim.mode == mode for claim in situation.claims)
    if mode == "generation":
        return min(minimum_s, _seconds_for(jobs, situation.pace))
    return minimum_s if jobs else 0.0
