"""The requests that wait or are drawn, in order, from what the arbiters know at one moment. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbiter import ActiveRequest, Claim, JobProgress, Snapshot

_LLM_JOB = "llm-"
"""How the ids of LLM requests begin, which are listed while they wait"""


@dataclass(frozen=True)
class GpuRequests:
    """What waits for one GPU or has it. `engine`: the name of its engine; None if there is only one."""

    snapshot: Snapshot
    progress_of: Callable[[str], JobProgress | None]
    engine: str | None = None

    def shown_engine(self) -> dict[str, Any]:
        """The field `engine` of an entry; none where there is only one engine."""
        return {} if self.engine is None else {"engine": self.engine}


def listed_requests(gpus: Sequence[GpuRequests], now: float) -> list[dict[str, Any]]:
    """As JSON, with the owner, which is not for clients: first those that are drawn, then those that wait, in the order of
    their turns. One that several engines draw is listed once. `now`: Unix time."""
    entries = [*_of_requests(gpus, now), *_of_claims(gpus)]
    # Stable: those that are drawn, and those whose place is not known, stay in the order of their arrival.
    return sorted(entries, key=lambda entry: -1 if entry["place"] is None else entry["place"])


@dataclass(frozen=True)
class _Held:
    """A claim of a request, and where it is."""

    gpu: GpuRequests
    claim: Claim


def _of_requests(gpus: Sequence[GpuRequests], now: float) -> Iterator[dict[str, Any]]:
    claims = [({claim.job: claim for claim in gpu.snapshot.claims}, gpu) for gpu in gpus]
    found: dict[str, tuple[GpuRequests, ActiveRequest]] = {}
    for gpu in gpus:
        for request in gpu.snapshot.requests:
            known = found.setdefault(request.id, (gpu, request))
            if request.since < known[1].since:
                found[request.id] = known[0], request
    for listing, request in found.values():
        held = [_Held(gpu, of[job]) for of, gpu in claims for job in request.jobs if job in of]
        # Between two of its jobs a request has no claim.
        tickets = [each for each in held if each.claim.kind == "ticket"]
        leases = [each for each in held if each.claim.kind == "lease"]
        shown = next(iter(leases or tickets), None)
        gpu = shown.gpu if shown else listing
        entry = _entry(request.id, gpu, shown.claim if shown and not leases else None)
        yield {
            **entry,
            "kind": "llm" if request.jobs and request.jobs[0].startswith(_LLM_JOB) else "image",
            "model": request.model,
            "prompt": request.prompt or None,
            "key": request.key or None,
            "owner": request.owner,
            "client": request.key or request.client or None,
            "age_s": round(max(0.0, now - request.since), 1),
            **_progress(request.jobs, leases, {each.claim.job for each in tickets}),
            "can_cancel": True,
            **gpu.shown_engine(),
        }


def _of_claims(gpus: Sequence[GpuRequests]) -> Iterator[dict[str, Any]]:
    """Claims of which no request is listed: LLM requests that are answered."""
    listed = {job for gpu in gpus for request in gpu.snapshot.requests for job in request.jobs}
    for gpu in gpus:
        for claim in gpu.snapshot.claims:
            if claim.job not in listed:
                yield {
                    **_entry(claim.job, gpu, claim if claim.kind == "ticket" else None),
                    "kind": "image" if claim.mode == "generation" else "llm",
                    **dict.fromkeys(("model", "prompt", "key", "owner", "client", "age_s")),
                    **_progress([claim.job], [_Held(gpu, claim)] if claim.kind == "lease" else [], set()),
                    "can_cancel": claim.mode == "generation",
                    **gpu.shown_engine(),
                }


def _entry(id: str, gpu: GpuRequests, ticket: Claim | None) -> dict[str, Any]:
    """`ticket`: None if the request does not wait."""
    waiting = gpu.snapshot.waiting.get(ticket.job) if ticket is not None else None
    return {
        "id": id,
        "state": "drawing" if ticket is None else "waiting",
        "place": None if ticket is None else waiting.place if waiting else 0,
        "waits_for": waiting.waits_for if waiting else None,
        "reason": waiting.reason if waiting else None,
        "expected_s": waiting.expected_s if waiting else None,
    }


def _progress(jobs: Sequence[str], leases: Sequence[_Held], waiting: set[str]) -> dict[str, Any]:
    """Of all jobs of a request; the step is that of the first one that is drawn now. `waiting`: its jobs that wait."""
    found: Mapping[str, JobProgress | None] = {
        each.claim.job: each.gpu.progress_of(each.claim.job) for each in leases
    }
    present = next(iter(found.values()), None)
    step, steps = (None, None) if present is None else (present.step, present.steps)
    shares = [
        min(1.0, each.step / each.steps) for each in found.values() if each and each.step and each.steps
    ]
    if not shares:
        return {"progress": None, "step": step, "steps": steps}
    # Jobs begin in their order: those before the last one that is drawn, and that hold nothing, have ended.
    last = max((jobs.index(job) for job in found if job in jobs), default=0)
    done = sum(job not in found and job not in waiting for job in jobs[:last])
    return {"progress": round((done + sum(shares)) / len(jobs), 3), "step": step, "steps": steps}
