"""Claims that wait for each other: which of them gets a lease now. Processes agree under the state's mutex."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from arbiter.fair_queue import NO_TURNS, Turns, has_turn, queue_order, queue_position
from arbiter.leases import Claim, ClaimFolder, OwnClaim
from arbiter.policy import Situation, is_open, is_revoked, may_trigger_switch, next_claim_number
from arbiter.state_store import StateStore
from arbiter.turn_store import TurnStore
from arbiter.values import Mode, Policy, State
from errors import EaselError


class ClaimQueue:
    """The claims of one folder and the turns of their flows. `needs_mode`: they are granted only in their mode; else in
    any, and those without a flow at once, unless `queues_all`: then these wait for their turn, too. Safe for threads and
    processes."""

    def __init__(
        self,
        claims: ClaimFolder,
        turns: TurnStore,
        *,
        needs_mode: bool,
        queues_all: bool = False,
        state_store: StateStore,
        policy: Policy,
        clock: Callable[[], float],
    ) -> None:
        self.claims, self._turns, self.needs_mode = claims, turns, needs_mode
        self._queues_all = queues_all
        self._state_store, self._policy, self._clock = state_store, policy, clock

    def has(self, own_claim: OwnClaim) -> bool:
        """Whether the claim was created here."""
        return own_claim.folder == self.claims.folder

    def turns(self) -> Turns:
        """The last turns of the flows."""
        return self._turns.turns()

    def order(self, mode: Mode) -> list[Claim]:
        """The tickets for `mode`, in the order of their turns."""
        return queue_order(self.claims.all(), mode, self.turns())

    def position(self, ticket: Claim) -> int:
        """How many tickets come before `ticket`."""
        return queue_position(self.claims.all(), ticket, self.turns())

    def situation(self, mode: Mode) -> Situation:
        """Of these claims; if they need no mode, in the state in which `mode` is open."""
        return Situation(
            self._state_store.state() if self.needs_mode else State(mode),
            self.claims.all(),
            self._state_store.pace(),
            self._policy,
            self._clock(),
            turns=self.turns(),
        )

    def create(self, mode: Mode, job: str, need: int, flow: str) -> OwnClaim:
        """A lease if it can be granted at once, else a ticket. Raises OSError and the errors of the state's mutex."""
        if not (self.needs_mode or flow or self._queues_all):
            # Processes need not agree on a number; the lease only names the job and its process.
            number = _number_without_mode()
            return self.claims.create(Claim("lease", number, mode, True, need, os.getpid(), job))
        with self._state_store.mutex():
            state, claims = self._state_store.state(), self.claims.all()
            triggers = may_trigger_switch(mode, self._policy) and not self._may_coexist(state, mode)
            number = next_claim_number(state, claims, self._turns_of(flow))
            if not self.needs_mode:
                number = max(number, _number_without_mode())
            ticket = Claim("ticket", number, mode, triggers, need, os.getpid(), job, flow)
            if not self._can_grant(ticket, claims):
                return self.claims.create(ticket)
            lease = self.claims.create(replace(ticket, kind="lease"))
            self._begin_turn(lease.claim, claims)
            return lease

    def try_grant(self, own_claim: OwnClaim) -> bool:
        """Turn the ticket into a lease if it is its turn."""
        if not self._can_grant(own_claim.claim, self.claims.all()):
            return False
        with self._state_store.mutex():
            claims = self.claims.all()
            if not self._can_grant(own_claim.claim, claims):
                return False
            self._grant(own_claim, claims)
            return True

    def try_grant_coexisting(self, own_claim: OwnClaim, available_bytes: Callable[[], int | None]) -> bool:
        """With `coexist`: grant the lease in inference mode if the job fits beside the LLMs; if it does not, let the
        ticket trigger a switch. `available_bytes`: None if unknown."""
        ticket = own_claim.claim
        if ticket.triggers_switch or not self._may_coexist(self._state_store.state(), ticket.mode):
            return False
        available = available_bytes()
        fits = available is not None and 0 < ticket.need <= available - self._policy.reserve_bytes
        with self._state_store.mutex():
            state, claims = self._state_store.state(), self.claims.all()
            if not fits:
                own_claim.change(triggers_switch=True)
                return False
            may_grant = state.active_switch is None and state.wanted is None and state.mode == "inference"
            if not may_grant or not self._has_turn(ticket, claims):
                return False
            self._grant(own_claim, claims)
            return True

    def end_turn(self, claim: Claim) -> None:
        """The lease `claim` has ended: its flow counts as active from now on."""
        if claim.flow and claim.kind == "lease":
            with contextlib.suppress(EaselError), self._state_store.mutex():
                self._turns.end(claim.flow, self._clock())

    def _can_grant(self, ticket: Claim, claims: Sequence[Claim]) -> bool:
        state = self._state_store.state()
        if self.needs_mode and (not is_open(state, ticket.mode) or is_revoked(state, ticket)):
            return False
        return self._has_turn(ticket, claims)

    def _has_turn(self, ticket: Claim, claims: Sequence[Claim]) -> bool:
        return has_turn(claims, ticket, self._policy.depth, self._turns_of(ticket.flow), self._clock())

    def _turns_of(self, flow: str) -> Turns:
        """Without keys the file need not be looked at."""
        return self.turns() if flow else NO_TURNS

    def _grant(self, own_claim: OwnClaim, claims: Sequence[Claim]) -> None:
        own_claim.change(kind="lease")
        self._begin_turn(own_claim.claim, claims)

    def _begin_turn(self, claim: Claim, claims: Sequence[Claim]) -> None:
        if claim.flow:
            self._turns.begin(claim.flow, (*claims, claim), self._clock())

    def _may_coexist(self, state: State, mode: Mode) -> bool:
        return self._policy.sharing == "coexist" and mode == "generation" and state.mode == "inference"


def _number_without_mode() -> int:
    """Higher than any of the claims that need a mode, so it is never revoked."""
    return time.time_ns() // 1_000_000
