"""Who gets the GPU next, and when. Pure: values in, a decision out. README.md lists the decisions by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arbiter.fair_queue import NO_TURNS, Turns, has_turn
from arbiter.leases import Claim
from arbiter.values import STATE_LOST, Mode, Pace, Policy, State, Switch, other_mode
from gpu_tenant import Resident

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
    return (
        state.mode == mode and state.active_switch is None and state.wanted is None and state.rebuilt is None
    )


def is_revoked(state: State, claim: Claim) -> bool:
    """Whether a forced switch voided the claim."""
    return claim.number <= state.revoked[claim.mode]


def next_claim_number(state: State, claims: Claims, turns: Turns = NO_TURNS) -> int:
    """A number higher than that of every existing and every revoked claim, and of every turn that is remembered."""
    of_turns = (turn.number for turn in turns.values())
    return max([*state.revoked.values(), *(claim.number for claim in claims), *of_turns]) + 1


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


@dataclass(frozen=True)
class Situation:
    """Everything that a decision depends on, at one moment. `asked_at`: when the current mode last had a claim, as far
    as that was seen; 0 for never."""

    state: State
    claims: Claims
    pace: Pace
    policy: Policy
    now: float
    asked_at: float = 0.0
    later_jobs: int = 0
    """Jobs of the present requests that have no claim yet"""
    turns: Turns = field(default_factory=lambda: NO_TURNS)


ASKED_S = 0.2
"""So long after its last claim a mode still counts as asked for: clients send one request after another. It delays a lone
request for the other mode, so it is short."""
FIRST_LEASE_TIMEOUT_S = 1.0
"""How long a mode is kept for requests that waited for it and have no lease yet"""


def next_switch(situation: Situation) -> NextSwitch | None:
    """The switch that should start now, or None. Call it only while no switch is active."""
    state, claims, now = situation.state, situation.claims, situation.now
    # 1. An explicit request comes before everything else.
    if state.wanted is not None:
        return NextSwitch(state.wanted.mode, state.wanted.reason, state.wanted.force, state.wanted.pin)
    stay_s = remaining_stay_s(situation)
    # 2. After a lost state the first attempt to repair it failed: try again, once in each minimum stay.
    if state.rebuilt is not None and not stay_s:
        return NextSwitch("inference", STATE_LOST)
    # 3. A pin keeps generation mode.
    if state.pinned:
        return None
    # 4. A switch failed after it had begun to unload. The same fault may fail the next one, which would unload again.
    if stay_s and has_failed_late(state):
        return None
    # 5. The mode was just reached and a request whose turn it is has no lease yet.
    if _waits_for_first_lease(situation):
        return None
    # 6. A request waits for the other mode. The minimum stay counts only if both modes are asked for.
    target = other_mode(state.mode)
    if any(
        ticket.triggers_switch and not is_revoked(state, ticket)
        for ticket in select(claims, "ticket", target)
    ):
        must_stay = stay_s and _is_asked(situation, state.mode)
        return None if must_stay else NextSwitch(target, QUEUE_REASONS[target])
    # 7. The LLM stacks have the GPU and no request needs it.
    if state.mode == "inference":
        return None
    # 8. Jobs run or wait in generation mode.
    if any(claim.mode == "generation" for claim in claims):
        return None
    # 9. The pictures are done, and none came for as long as `restore` says.
    restore_at = idle_restore_at(situation)
    if restore_at is not None and now >= restore_at and not (stay_s and has_failed(state)):
        return NextSwitch("inference", NO_PICTURES)
    # 10. The mode stays.
    return None


ENGINE_DOWN = "the engine is down"
"""The reason of a repair that starts the engine"""
NO_PICTURES = "no more pictures"
"""The reason of a switch to inference that no request waits for"""


def has_failed(state: State) -> bool:
    """Whether the last switch failed."""
    return state.switch is not None and state.switch.error is not None


def has_failed_late(state: State) -> bool:
    """Whether the last switch failed and may have unloaded something before."""
    return has_failed(state) and state.switch is not None and state.switch.may_have_released


def remaining_stay_s(situation: Situation) -> float:
    """What is left of the minimum stay; nothing if the clock was set back."""
    elapsed_s = situation.now - situation.state.since
    return max(0.0, situation.policy.min_stay_s - elapsed_s) if elapsed_s >= 0 else 0.0


def _is_asked(situation: Situation, mode: Mode) -> bool:
    """Whether a request needs `mode`, the current one, or did a moment ago."""
    if 0 <= situation.now - situation.asked_at < ASKED_S:
        return True
    return any(claim.mode == mode and not is_revoked(situation.state, claim) for claim in situation.claims)


def _waits_for_first_lease(situation: Situation) -> bool:
    """Whether a request whose turn it is may still take its lease. Without this, and with a minimum stay of 0, two
    sides that request all the time would switch back and forth without serving a request."""
    state, claims, now = situation.state, situation.claims, situation.now
    return 0 <= now - state.since < FIRST_LEASE_TIMEOUT_S and any(
        has_turn(claims, ticket, situation.policy.depth, situation.turns, now)
        and not is_revoked(state, ticket)
        for ticket in select(claims, "ticket", state.mode)
    )


def idle_restore_at(situation: Situation) -> float | None:
    """When the LLM stacks get the GPU back if no request comes, in Unix seconds; None for never."""
    state, policy = situation.state, situation.policy
    if state.mode == "inference" or state.pinned or policy.restore == "never":
        return None
    # A time in the future was written before the clock was set back.
    times = [moment for moment in (situation.pace.last, state.since) if moment <= situation.now]
    used_at = max(times, default=0.0)
    if policy.restore == "linger" and not state.requested:
        return used_at + policy.linger_s
    return used_at + policy.idle_restore_s if policy.idle_restore_s > 0 else None


def after_llm_load(
    situation: Situation, residents: Sequence[Resident], *, is_in_use: bool
) -> NextSwitch | None:
    """The switch to begin when `residents` were found in generation mode: a client sent a request straight to an LLM
    server. If nothing is drawn or waits and the mode is not pinned, it gets the GPU; else the LLMs are unloaded, and
    loaded again after the pictures. `is_in_use`: pictures are drawn, though there may be no claim."""
    state = situation.state
    if not is_open(state, "generation"):
        return None
    names = ", ".join(f"{item.owner}/{item.id}" for item in residents)
    is_used = is_in_use or any(claim.mode == "generation" for claim in situation.claims)
    if state.pinned or is_used:
        return NextSwitch("generation", f"loaded outside Easel: {names}", pin=state.pinned)
    if has_failed(state) and remaining_stay_s(situation):
        return None
    return NextSwitch("inference", f"LLM loaded: {names}")
