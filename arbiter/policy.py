"""Who gets the GPU next, and when: decided with values alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arbiter.leases import Claim
from arbiter.values import STATE_LOST, Mode, Pace, Policy, State, Switch, other

ClaimFolder = Sequence[Claim]


@dataclass(frozen=True)
class NextSwitch:
    """A switch that should begin now."""

    target: Mode
    reason: str
    force: bool = False
    pin: bool = False


WAITED_FOR: Mapping[Mode, str] = {"generation": "image request", "inference": "LLM request"}
"""The reason of a switch to a mode that is made because somebody waits for it"""


def is_unwanted(switch: Switch, claims: ClaimFolder) -> bool:
    """Whether everybody that a switch was begun for has gone."""
    waiting = any(ticket.asks for ticket in of(claims, "ticket", switch.target))
    return switch.reason == WAITED_FOR[switch.target] and not waiting


def of(claims: ClaimFolder, kind: str, mode: Mode) -> list[Claim]:
    """The holds of a kind and mode, in order."""
    return [claim for claim in claims if claim.kind == kind and claim.mode == mode]


def is_open(state: State, mode: Mode) -> bool:
    """Whether leases of `mode` may be granted at all: it is the present mode, and known to be, and nobody is passing the
    GPU on."""
    calm = state.under_way is None and not (state.wanted and state.wanted.mode != mode)
    return state.mode == mode and calm and state.rebuilt is None


def is_first(claims: ClaimFolder, mine: Claim, depth: int) -> bool:
    """Whether `mine` is among those whose turn it is. LLM servers queue for themselves; the engine gets `depth` jobs."""
    if mine.mode == "inference":
        return True
    return len(of(claims, "lease", mine.mode)) + place(claims, mine) < depth


def place(claims: ClaimFolder, mine: Claim) -> int:
    """How many wait for the same mode before `mine`."""
    return sum(1 for claim in of(claims, "ticket", mine.mode) if claim.number < mine.number)


def is_revoked(state: State, claim: Claim) -> bool:
    """Whether the owner took the GPU from it by force."""
    return claim.number <= state.revoked[claim.mode]


def next_number(state: State, claims: ClaimFolder) -> int:
    """A number after every hold that there is and that was ever revoked."""
    return max([*state.revoked.values(), *(claim.number for claim in claims)]) + 1


def asks(mode: Mode, policy: Policy) -> bool:
    """Whether waiting for `mode` is a reason to switch to it."""
    return mode == "generation" or policy.llm_during_generation == "switch"


def turns_away(state: State, mode: Mode, policy: Policy) -> bool:
    """Whether an LLM request is refused at once instead of waiting, image mode being in force or coming."""
    if mode != "inference":
        return False
    heading = state.under_way.target if state.under_way else state.wanted.mode if state.wanted else state.mode
    pinned = state.pinned and heading == "generation"
    return heading == "generation" and (pinned or policy.llm_during_generation == "refuse")


def next_switch(
    state: State, claims: ClaimFolder, pace: Pace, policy: Policy, now: float
) -> NextSwitch | None:
    """What should begin now, if anything. What was asked for by name first, then who waits, then nobody's wish."""
    if state.wanted is not None:
        return NextSwitch(state.wanted.mode, state.wanted.reason, state.wanted.force, state.wanted.pin)
    stayed = now - state.since >= policy.min_stay_s or now < state.since  # the clock was set back
    if state.rebuilt is not None and stayed:
        return NextSwitch("inference", STATE_LOST)
    if state.pinned or not stayed or _is_letting_in(state, claims, policy, now):
        return None
    waiting = of(claims, "ticket", other(state.mode))
    if any(ticket.asks and not is_revoked(state, ticket) for ticket in waiting):
        return NextSwitch(other(state.mode), WAITED_FOR[other(state.mode)])
    return _restore(state, claims, pace, policy, now)


LET_IN_S = 1.0
"""Longest time that those who waited for a mode have to come in before it may be left again"""


def _is_letting_in(state: State, claims: ClaimFolder, policy: Policy, now: float) -> bool:
    """Whether a mode was just reached and somebody whose turn it is has not taken it yet: without this, two sides that
    ask all the time would pass the GPU to and fro at a minimum stay of 0, and nobody would be served."""
    waiting = of(claims, "ticket", state.mode)
    return 0 <= now - state.since < LET_IN_S and any(
        is_first(claims, each, policy.depth) and not is_revoked(state, each) for each in waiting
    )


def _restore(state: State, claims: ClaimFolder, pace: Pace, policy: Policy, now: float) -> NextSwitch | None:
    if state.mode == "inference" or any(claim.mode == "generation" for claim in claims):
        return None
    idle = now - max(pace.last, state.since) >= policy.idle_restore_s > 0
    if policy.restore == "when_done" or (policy.restore == "idle" and idle):
        return NextSwitch("inference", "pictures done" if policy.restore == "when_done" else "idle")
    return None


def idle_restore_at(state: State, pace: Pace, policy: Policy) -> float | None:
    """When the GPU goes back if nobody asks for anything, in Unix seconds; None for never."""
    if state.mode == "inference" or state.pinned or policy.restore == "never":
        return None
    if policy.restore == "when_done":
        return max(pace.last, state.since + policy.min_stay_s)
    if policy.idle_restore_s <= 0:
        return None
    return max(pace.last, state.since) + policy.idle_restore_s


SWITCH_S = 15.0
"""How long a switch takes as far as nobody has measured one"""


@dataclass(frozen=True)
class Now:
    """Everything that is known at one moment."""

    state: State
    claims: ClaimFolder
    pace: Pace
    policy: Policy
    time: float


def seconds_until(mode: Mode, mine: Claim | None, now: Now) -> int | None:
    """An honest `Retry-After`: how long until `mode` can be had, whole seconds, at least 1. None: nobody can say.

    `mine` is the ticket of who asks, if there is one.
    """
    seconds = 0.0
    if mode == "generation":
        ahead = place(now.claims, mine) if mine else len(of(now.claims, "ticket", mode))
        # The engine runs one job at a time, whatever its depth.
        seconds = (ahead + len(of(now.claims, "lease", mode))) * now.pace.seconds_each
    if now.state.mode != mode or now.state.under_way is not None:
        change = _until_change(mode, now)
        if change is None:
            return None
        seconds += change
    return max(1, math.ceil(seconds))


def _until_change(mode: Mode, now: Now) -> float | None:
    state, policy = now.state, now.policy
    switch_s = state.took_s.get(mode, SWITCH_S)
    if state.under_way is not None and state.under_way.target == mode:
        # One that takes longer than usual is expected to take as long again.
        took_s = max(0.0, now.time - state.under_way.began)
        return max(1.0, switch_s - took_s) if took_s < switch_s else min(took_s, policy.drain_s)
    stay_s = max(0.0, min(policy.min_stay_s, state.since + policy.min_stay_s - now.time))
    if state.under_way is not None:  # it goes the other way first
        stay_s, switch_s = policy.min_stay_s, switch_s + state.took_s.get(other(mode), SWITCH_S)
    if state.pinned:
        return None
    running_s = len(of(now.claims, "lease", "generation")) * now.pace.seconds_each
    if asks(mode, policy):
        return max(running_s, stay_s) + switch_s
    at = idle_restore_at(state, now.pace, policy)
    if at is None:
        return None
    queued_s = sum(claim.mode == "generation" for claim in now.claims) * now.pace.seconds_each
    return queued_s + max(at - now.time, stay_s) + switch_s
