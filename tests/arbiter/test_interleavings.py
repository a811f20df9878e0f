"""A tenth of the soak (`python -m tests.arbiter`): random interleavings over real processes that die, on a GPU that
misbehaves; and proof that it would see what it looks for."""

from __future__ import annotations

import collections
import itertools

import pytest

from tests.arbiter.soak import MUTANTS, PHASES, Verdict, make_plan, run_many

SEEDS = range(1, 201)
MORE = range(100_000, 110_000)
"""Where those come from that are played until every phase was died in: who is killed where is a matter of time"""


def kills(seed: int) -> bool:
    plan = make_plan(seed)
    return bool(plan.dies_in or plan.kills or plan.restart_all_at)


def dying_in(phase: str) -> list[int]:
    """Some seeds of interleavings in which a process is to die at the beginning of `phase`."""
    return list(itertools.islice((seed for seed in MORE if phase in make_plan(seed).dies_in.values()), 60))


def until_died_in(phase: str) -> list[Verdict]:
    played: list[Verdict] = []
    for batch in itertools.batched(dying_in(phase), 6) if hasattr(itertools, "batched") else _batches(phase):
        played += run_many(list(batch), at_once=6)
        if any(phase in verdict.killed_in for verdict in played):
            break
    return played


def _batches(phase: str) -> list[list[int]]:
    seeds = dying_in(phase)
    return [seeds[start : start + 6] for start in range(0, len(seeds), 6)]


def test_in_no_interleaving_is_the_gpu_shared_a_wish_lost_or_anybody_left_waiting() -> None:
    played = run_many(list(SEEDS), at_once=6)
    deaths = collections.Counter(phase for verdict in played for phase in verdict.killed_in)
    for phase in PHASES:
        if not deaths[phase]:
            played += until_died_in(phase)
    deaths = collections.Counter(phase for verdict in played for phase in verdict.killed_in)
    print(
        f"seeds {SEEDS.start} to {SEEDS.stop - 1} and {[verdict.seed for verdict in played[len(SEEDS) :]]}; {deaths}"
    )
    assert {verdict.seed: verdict.errors for verdict in played if verdict.errors} == {}
    assert sum(kills(verdict.seed) for verdict in played) >= 20
    assert set(deaths) == set(PHASES)
    assert sum(verdict.drawn for verdict in played) > 200
    assert sum(verdict.served for verdict in played) > 200


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name])
def test_a_switchover_that_does_not_look_is_found_out(mutant: str) -> None:
    for start in range(1, 61, 12):
        if any(
            verdict.errors for verdict in run_many(list(range(start, start + 12)), at_once=6, mutant=mutant)
        ):
            return
    pytest.fail("sixty interleavings found nothing wrong")
