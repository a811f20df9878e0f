"""Requests of several GPUs as one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from arbiter import ActiveRequest, Claim, JobProgress, Snapshot, Waiting
from arbiter.state_store import Pace, State
from status.listed_requests import GpuRequests, listed_requests

JOBS = ("a", "b", "c", "d")
NOW = 100.0


def request(id: str, jobs: Sequence[str] = JOBS, since: float = 90.0) -> ActiveRequest:
    return ActiveRequest(id, f"x-{id}", "sdxl", "192.0.2.1", since, tuple(jobs), uses_gpu=True)


def gpu(
    engine: str | None,
    requests: Sequence[ActiveRequest],
    *,
    leases: Mapping[str, int | None] | None = None,
    tickets: Mapping[str, int] | None = None,
) -> GpuRequests:
    """`leases`: job -> the step of 10 that it has reached. `tickets`: job -> how many come before it."""
    leases, tickets = leases or {}, tickets or {}
    kinds = [(job, "lease") for job in leases] + [(job, "ticket") for job in tickets]
    claims = [Claim(kind, 1, "generation", True, 0, 1, job) for job, kind in kinds]  # type: ignore[arg-type]
    waiting = {
        job: Waiting("its turn", {"code": "pictures_before"}, 0.0, 5, place) for job, place in tickets.items()
    }
    steps = {job: JobProgress(job, step, 10, 0.0, 1.0) for job, step in leases.items() if step is not None}
    snapshot = Snapshot(State(), claims, Pace(), None, tuple(requests), waiting)
    return GpuRequests(snapshot, steps.get, engine)


@pytest.mark.parametrize(
    ("left", "right", "engine", "state", "progress", "step"),
    [
        # leases and tickets of the left engine, and of the right one
        (({"a": 5}, {}), ({"b": 5}, {}), "left", "drawing", 0.25, 5),
        (({"c": None}, {}), ({"b": 5}, {}), "left", "drawing", 0.375, None),
        (({}, {"b": 0}), ({"c": 10}, {}), "right", "drawing", 0.5, 10),
        (({}, {"b": 2}), ({}, {"c": 1}), "left", "waiting", None, None),
        (({}, {}), ({"d": 2}, {}), "right", "drawing", 0.8, 2),
        (({}, {}), ({}, {}), "left", "drawing", None, None),
    ],
)
def test_a_request_that_several_engines_draw_is_listed_once(
    left: tuple[dict[str, int | None], dict[str, int]],
    right: tuple[dict[str, int | None], dict[str, int]],
    engine: str,
    state: str,
    progress: float | None,
    step: int | None,
) -> None:
    gpus = [
        gpu(name, [request("r", since=since)], leases=held[0], tickets=held[1])
        for name, held, since in (("left", left, 95.0), ("right", right, 90.0))
    ]
    (entry,) = listed_requests(gpus, NOW)
    assert (entry["id"], entry["engine"], entry["state"]) == ("r", engine, state)
    assert (entry["progress"], entry["step"]) == (progress, step)
    assert entry["age_s"] == 10.0


def test_those_that_are_drawn_come_first_then_the_places_on_any_engine() -> None:
    gpus = [
        gpu("left", [request("l1", "1"), request("l2", "2")], leases={"1": 1}, tickets={"2": 1}),
        gpu("right", [request("r1", "3"), request("r2", "4")], leases={"4": 1}, tickets={"3": 0}),
    ]
    listed = listed_requests(gpus, NOW)
    assert [(each["id"], each["engine"], each["place"]) for each in listed] == [
        ("l1", "left", None),
        ("r2", "right", None),
        ("r1", "right", 0),
        ("l2", "left", 1),
    ]


def test_a_job_without_a_request_is_listed_at_its_engine() -> None:
    gpus = [gpu("left", [request("r", "1")]), gpu("right", [], leases={"1": 5, "other": 2})]
    listed = listed_requests(gpus, NOW)
    assert [(each["id"], each["engine"]) for each in listed] == [("r", "right"), ("other", "right")]


def test_with_one_engine_no_entry_names_it() -> None:
    (drawn, other) = listed_requests([gpu(None, [request("r")], leases={"b": 5, "z": 1})], NOW)
    assert (drawn["progress"], other["id"]) == (0.375, "z")
    assert "engine" not in drawn
    assert "engine" not in other
