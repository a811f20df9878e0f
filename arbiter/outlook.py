"""What a job would wait for at one GPU: the jobs before it, and the switch to generation mode. Pure, as the policy is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arbiter.fair_queue import flow_of, queue_order
from arbiter.leases import Claim
from arbiter.policy import Situation, select
from arbiter.waiting import seconds_until_switched


@dataclass(frozen=True)
class Outlook:
    """The queue of one GPU at one moment. `models`: job -> the model that it is drawn with, as far as that is known.
    `granted_at`: when the job that runs got its lease (Unix time); None if none runs."""

    situation: Situation
    models: Mapping[str, str]
    granted_at: float | None = None

    @property
    def running(self) -> tuple[str, ...]:
        """The jobs that the engine has, in the order in which it got them."""
        return tuple(claim.job for claim in select(self.situation.claims, "lease", "generation"))

    def waiting_before(self, key: str, job: str | None = None) -> tuple[str, ...]:
        """The jobs that wait and come before `job`, in their order; without `job`, those before a new one of `key` (its
        name)."""
        claims = self.situation.claims
        if job is None or all(claim.job != job for claim in claims):
            job = job or ""
            number = 1 + max((claim.number for claim in claims), default=0)
            ticket = Claim("ticket", number, "generation", True, 0, 0, job, flow_of(key))
            claims = (*claims, ticket)
        before = []
        for ticket in queue_order(claims, "generation", self.situation.turns):
            if ticket.job == job:
                break
            before.append(ticket.job)
        return tuple(before)

    @property
    def switch_s(self) -> float | None:
        """How long until the engine has the GPU; None if that is not known, as while another mode is pinned."""
        state = self.situation.state
        if state.mode == "generation" and state.active_switch is None:
            return 0.0
        return seconds_until_switched("generation", self.situation)
