"""Who gets the GPU next, and when. Pure: values in, a decision out. README.md lists the decisions by number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arbiter.leases import Claim
from arbiter.values import STATE_LOST, Mode, Pace, Policy, State, Switch, other_mode

Claims = Sequence[Claim]


@dataclass(frozen=True)
class NextSwitch:
    """A switch that should start now."""

    target: Mode
    reason: str
    force: bool = False
    pin: bool = False


QUEUE_REASONS: Mapping[Mode, str] = {"generation": "image request", "inference": "LLM request"}
"""The reason of a switch that starts because a request waits for its target"""


def is_abandoned(switch: Switch, claims: Claims) -> bool:
    """Whether a switch was started for waiting requests and none of them waits any more."""
    is_waited_for = any(ticket.triggers_switch for ticket in select(claims, "ticket", switch.target))
    return switch.reason == QUEUE_REASONS[switch.target] and not is_waited_for


def select(claims: Claims, kind: str, mode: Mode) -> list[Claim]:
    """The claims of a kind and mode, in order."""
    return [claim for claim in claims if claim.kind == kind and claim.mode == mode]


def is_open(state: State, mode: Mode) -> bool:
    """Whether leases of `mode` may be granted: it is the current mode, no switch is active or requested, and the state
    is known."""
    is_leaving = state.wanted is not None and state.wanted.mode != mode
    return state.mode == mode and state.active_switch is None and not is_leaving and state.rebuilt is None


def has_turn(claims: Claims, claim: Claim, depth: int) -> bool:
    """Whether `claim` is among the first in its queue. LLM servers queue by themselves; the engine gets `depth`
    jobs."""
    if claim.mode == "inference":
        return True
    return len(select(claims, "lease", claim.mode)) + queue_position(claims, claim) < depth


def queue_position(claims: Claims, claim: Claim) -> int:
    """How many tickets for the same mode come before `claim`."""
    return sum(1 for ticket in select(claims, "ticket", claim.mode) if ticket.number < claim.number)


def is_revoked(state: State, claim: Claim) -> bool:
    """Whether a forced switch voided the claim."""
    return claim.number <= state.revoked[claim.mode]


def next_claim_number(state: State, claims: Claims) -> int:
    """A number higher than that of every existing and every revoked claim."""
    return max([*state.revoked.values(), *(claim.number for claim in claims)]) + 1


def may_trigger_switch(mode: Mode, policy: Policy) -> bool:
    """Whether a request that waits for `mode` causes a switch to it."""
    return mode == "generation" or policy.llm_during_generation == "switch"


def is_refused(state: State, mode: Mode, policy: Policy) -> bool:
    """Whether a request for `mode` fails at once instead of waiting. Only LLM requests are refused: in generation mode,
    or once a switch to it is active or requested."""
    if mode != "inference":
        return False
    target = target_mode(state)
    is_pinned = state.pinned and target == "generation"
    return target == "generation" and (is_pinned or policy.llm_during_generation == "refuse")


def target_mode(state: State) -> Mode:
    """The mode of the active switch, else of the requested one, else the current mode."""
    if state.active_switch is not None:
        return state.active_switch.target
    return state.wanted.mode if state.wanted is not None else state.mode


def next_switch(state: State, claims: Claims, pace: Pace, policy: Policy, now: float) -> NextSwitch | None:
    """The switch that should start now, or None. Call it only while no switch is active."""
    # 1. An explicit request comes before the minimum stay, a pin and the queue.
    if state.wanted is not None:
        return NextSwitch(state.wanted.mode, state.wanted.reason, state.wanted.force, state.wanted.pin)
    has_stayed = now - state.since >= policy.min_stay_s or now < state.since  # the clock was set back
    # 2. After a lost state the first attempt to repair it failed: try again, once in each minimum stay.
    if state.rebuilt is not None and has_stayed:
        return NextSwitch("inference", STATE_LOST)
    # 3. A pin keeps generation mode.
    if state.pinned:
        return None
    # 4. The minimum stay is not over.
    if not has_stayed:
        return None
    # 5. The mode was just reached and a request whose turn it is has no lease yet.
    if _waits_for_first_lease(state, claims, policy, now):
        return None
    # 6. A request waits for the other mode.
    target = other_mode(state.mode)
    if any(
        ticket.triggers_switch and not is_revoked(state, ticket)
        for ticket in select(claims, "ticket", target)
    ):
        return NextSwitch(target, QUEUE_REASONS[target])
    # 7. The LLM stacks have the GPU and no request needs it.
    if state.mode == "inference":
        return None
    # 8. Jobs run or wait in generation mode.
    if any(claim.mode == "generation" for claim in claims):
        return None
    # 9. The jobs are done, and the LLM stacks get the GPU back at once.
    if policy.restore == "when_done":
        return NextSwitch("inference", "pictures done")
    # 10. The engine was idle for `idle_restore_s`; 0 means never.
    is_idle = now - max(pace.last, state.since) >= policy.idle_restore_s > 0
    if policy.restore == "idle" and is_idle:
        return NextSwitch("inference", "idle")
    # 11. The mode stays.
    return None


FIRST_LEASE_TIMEOUT_S = 1.0
"""How long a mode is kept for requests that waited for it and have no lease yet"""


def _waits_for_first_lease(state: State, claims: Claims, policy: Policy, now: float) -> bool:
    """Whether a request whose turn it is may still take its lease. Without this, and with a minimum stay of 0, two
    sides that request all the time would switch back and forth without serving a request."""
    return 0 <= now - state.since < FIRST_LEASE_TIMEOUT_S and any(
        has_turn(claims, ticket, policy.depth) and not is_revoked(state, ticket)
        for ticket in select(claims, "ticket", state.mode)
    )


def idle_restore_at(state: State, pace: Pace, policy: Policy) -> float | None:
    """When the LLM stacks get the GPU back if no request comes, in Unix seconds; None for never."""
    if state.mode == "inference" or state.pinned or policy.restore == "never":
        return None
    if policy.restore == "when_done":
        return max(pace.last, state.since + policy.min_stay_s)
    if policy.idle_restore_s <= 0:
        return None
    return max(pace.last, state.since) + policy.idle_restore_s


DEFAULT_SWITCH_S = 15.0
"""How long a switch is assumed to take until one was measured"""


@dataclass(frozen=True)
class Situation:
    """Everything that `seconds_until` needs, at one moment."""

    state: State
    claims: Claims
    pace: Pace
    policy: Policy
    now: float


def seconds_until(mode: Mode, ticket: Claim | None, situation: Situation) -> int | None:
    """The value of `Retry-After`: how long until a request for `mode` can run, in whole seconds, at least 1. None if
    unknown. `ticket`: that of the request, if it has one.
    """
    state, claims, pace = situation.state, situation.claims, situation.pace
    seconds = 0.0
    if mode == "generation":
        ahead = queue_position(claims, ticket) if ticket else len(select(claims, "ticket", mode))
        # The engine runs one job at a time, at any depth.
        seconds = (ahead + len(select(claims, "lease", mode))) * pace.seconds_each
    if state.mode != mode or state.active_switch is not None:
        until_switched_s = _seconds_until_switched(mode, situation)
        if until_switched_s is None:
            return None
        seconds += until_switched_s
    return max(1, math.ceil(seconds))


def _seconds_until_switched(mode: Mode, situation: Situation) -> float | None:
    state, policy, now = situation.state, situation.policy, situation.now
    switch_s = state.took_s.get(mode, DEFAULT_SWITCH_S)
    if state.active_switch is not None and state.active_switch.target == mode:
        # One that takes longer than usual is expected to take as long again.
        elapsed_s = max(0.0, now - state.active_switch.began)
        return (
            max(1.0, switch_s - elapsed_s) if elapsed_s < switch_s else min(elapsed_s, policy.drain_timeout_s)
        )
    stay_s = max(0.0, min(policy.min_stay_s, state.since + policy.min_stay_s - now))
    if state.active_switch is not None:  # it switches to the other mode first
        stay_s = policy.min_stay_s
        switch_s += state.took_s.get(other_mode(mode), DEFAULT_SWITCH_S)
    if state.pinned:
        return None
    running_s = len(select(situation.claims, "lease", "generation")) * situation.pace.seconds_each
    if may_trigger_switch(mode, policy):
        return max(running_s, stay_s) + switch_s
    restore_at = idle_restore_at(state, situation.pace, policy)
    if restore_at is None:
        return None
    queued_s = sum(claim.mode == "generation" for claim in situation.claims) * situation.pace.seconds_each
    return queued_s + max(restore_at - now, stay_s) + switch_s
