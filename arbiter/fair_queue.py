"""The order of waiting requests, fair between API keys: fair queueing in rounds. Pure, as the policy is.

The requests of one key are a flow; without keys all requests are one flow, and come in the order of arrival. In each round
every flow has one turn, and the flow whose last turn was longest ago comes first. So a key that sends many requests delays
another key by no more than one that sends them one by one, and no flow starves: each turn of another flow moves that one
behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from arbiter.leases import Claim
from arbiter.values import Mode

ACTIVE_S = 10.0
"""So long after its last turn a flow without a request still counts as active: a client sends its next request when it has
the answer to the last one"""
MAX_FLOWS = 10_000
"""How many flows are remembered"""
MAX_IDLE_S = 86_400.0
"""How long a flow without a request is remembered: then it comes as one that is new"""


@dataclass(frozen=True)
class Turn:
    """The last turn of a flow: its number, from the same sequence as those of the claims and higher than all before it, and
    when it began or ended (Unix time)."""

    number: int
    at: float


Turns = Mapping[str, Turn]
"""flow -> its last turn"""
NO_TURNS: Turns = MappingProxyType({})


def flow_of(key: str) -> str:
    """The flow of a key's name; empty for none."""
    return hashlib.blake2s(key.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest() if key else ""


def queue_order(claims: Sequence[Claim], mode: Mode, turns: Turns) -> list[Claim]:
    """The tickets for `mode`, in the order of their turns."""
    rounds: dict[str, int] = {}
    for claim in claims:
        if claim.kind == "lease" and claim.mode == mode:
            rounds[claim.flow] = rounds.get(claim.flow, 0) + 1
    tickets = [claim for claim in claims if is_ticket(claim, mode)]
    last: dict[str, int] = {}
    places = []
    for ticket in sorted(tickets, key=lambda ticket: ticket.number):
        flow = ticket.flow
        if flow not in last:  # one that had no turn yet is as old as its first request
            last[flow] = turns[flow].number if flow in turns else ticket.number
        places.append((rounds.get(flow, 0), last[flow], ticket.number, ticket))
        rounds[flow] = rounds.get(flow, 0) + 1
    return [place[-1] for place in sorted(places, key=lambda place: place[:3])]


def is_ticket(claim: Claim, mode: Mode) -> bool:
    return claim.kind == "ticket" and claim.mode == mode


def queue_position(claims: Sequence[Claim], claim: Claim, turns: Turns = NO_TURNS) -> int:
    """How many tickets for the same mode come before `claim`, or would, if it is not among them."""
    if all(each.flow == claim.flow for each in claims):
        return sum(each.number < claim.number for each in claims if is_ticket(each, claim.mode))
    others = [each for each in claims if each.number != claim.number]
    order = queue_order([*others, replace(claim, kind="ticket")], claim.mode, turns)
    return next(index for index, ticket in enumerate(order) if ticket.number == claim.number)


def has_turn(
    claims: Sequence[Claim], claim: Claim, depth: int, turns: Turns = NO_TURNS, now: float = 0.0
) -> bool:
    """Whether `claim` is among the first in its queue. LLM servers queue by themselves; the engine gets `depth` jobs.

    While several flows are active each has at most one of these: a second job in the engine's own queue would be
    before the next request of another key.
    """
    if claim.mode == "inference":
        return True
    leases = [each for each in claims if each.kind == "lease" and each.mode == claim.mode]
    if len(leases) >= depth:
        return False
    if any(lease.flow == claim.flow for lease in leases) and _has_other_active(claims, claim, turns, now):
        return False
    return len(leases) + queue_position(claims, claim, turns) < depth


def next_turn_number(claims: Sequence[Claim], turns: Turns) -> int:
    """The number of a turn that begins now. No other turn has it: of two flows, one had the later turn."""
    return max([0, *(claim.number for claim in claims), *(turn.number for turn in turns.values())]) + 1


def _has_other_active(claims: Sequence[Claim], claim: Claim, turns: Turns, now: float) -> bool:
    return any(each.mode == claim.mode and each.flow != claim.flow for each in claims) or any(
        flow != claim.flow and 0 <= now - turn.at < ACTIVE_S for flow, turn in turns.items()
    )


def with_turn(turns: Turns, flow: str, number: int, now: float) -> dict[str, Turn]:
    """`turns` after a turn of `flow` began; those of long ago, and the oldest of too many, are forgotten."""
    # A time far ahead is of a clock that was set back.
    kept = {each: turn for each, turn in turns.items() if each != flow and abs(now - turn.at) <= MAX_IDLE_S}
    kept[flow] = Turn(number, now)
    return dict(list(kept.items())[-MAX_FLOWS:])


def with_end(turns: Turns, flow: str, now: float) -> Turns:
    """`turns` after the turn of `flow` ended: it counts as active from now on."""
    return {**turns, flow: replace(turns[flow], at=now)} if flow in turns else turns
