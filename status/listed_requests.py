"""The requests that wait or are drawn, in order, from what the arbiter knows at one moment. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from arbiter import Claim, JobProgress, Snapshot

_LLM_JOB = "llm-"
"""How the ids of LLM requests begin, which are listed while they wait"""


def listed_requests(
    snapshot: Snapshot, progress_of: Callable[[str], JobProgress | None], now: float
) -> list[dict[str, Any]]:
    """As JSON, with the owner, which is not for clients: first those that are drawn, then those that wait, in the order of
    their turns. `now`: Unix time."""
    claims = {claim.job: claim for claim in snapshot.claims}
    entries = [
        *_of_requests(snapshot, claims, progress_of, now),
        *_of_claims(snapshot, progress_of),
    ]
    # Stable: those that are drawn, and those whose place is not known, stay in the order of their arrival.
    return sorted(entries, key=lambda entry: -1 if entry["place"] is None else entry["place"])


def _of_requests(
    snapshot: Snapshot,
    claims: Mapping[str, Claim],
    progress_of: Callable[[str], JobProgress | None],
    now: float,
) -> Iterator[dict[str, Any]]:
    for request in snapshot.requests:
        held = [claims[job] for job in request.jobs if job in claims]
        # Between two of its jobs a request has no claim.
        ticket = next((claim for claim in held if claim.kind == "ticket"), None)
        lease = next((claim for claim in held if claim.kind == "lease"), None)
        entry = _entry(request.id, snapshot, None if lease else ticket)
        yield {
            **entry,
            "kind": "llm" if request.jobs and request.jobs[0].startswith(_LLM_JOB) else "image",
            "model": request.model,
            "prompt": request.prompt or None,
            "key": request.key or None,
            "owner": request.owner,
            "client": request.key or request.client or None,
            "age_s": round(max(0.0, now - request.since), 1),
            **_progress(request.jobs, lease, progress_of),
            "can_cancel": True,
        }


def _of_claims(
    snapshot: Snapshot, progress_of: Callable[[str], JobProgress | None]
) -> Iterator[dict[str, Any]]:
    """Claims of which no request is listed: LLM requests that are answered."""
    listed = {job for request in snapshot.requests for job in request.jobs}
    for claim in snapshot.claims:
        if claim.job not in listed:
            yield {
                **_entry(claim.job, snapshot, claim if claim.kind == "ticket" else None),
                "kind": "image" if claim.mode == "generation" else "llm",
                **dict.fromkeys(("model", "prompt", "key", "owner", "client", "age_s")),
                **_progress([claim.job], claim, progress_of),
                "can_cancel": claim.mode == "generation",
            }


def _entry(id: str, snapshot: Snapshot, ticket: Claim | None) -> dict[str, Any]:
    """`ticket`: None if the request does not wait."""
    waiting = snapshot.waiting.get(ticket.job) if ticket is not None else None
    return {
        "id": id,
        "state": "drawing" if ticket is None else "waiting",
        "place": None if ticket is None else waiting.place if waiting else 0,
        "waits_for": waiting.waits_for if waiting else None,
        "reason": waiting.reason if waiting else None,
        "expected_s": waiting.expected_s if waiting else None,
    }


def _progress(
    jobs: Sequence[str], lease: Claim | None, progress_of: Callable[[str], JobProgress | None]
) -> dict[str, Any]:
    """Of all jobs of a request; the step is that of the present one."""
    found = progress_of(lease.job) if lease is not None and lease.kind == "lease" else None
    step, steps = (None, None) if found is None else (found.step, found.steps)
    if lease is None or not step or not steps:
        return {"progress": None, "step": step, "steps": steps}
    done = jobs.index(lease.job) if lease.job in jobs else 0
    return {"progress": round((done + min(1.0, step / steps)) / len(jobs), 3), "step": step, "steps": steps}
