"""A tenth of the soak test (`python -m tests.arbiter`): random interleavings over real processes that are killed, on a
GPU that misbehaves. Mutants of the switchover prove that it would find an error."""

from __future__ import annotations

import collections
import itertools

import pytest

from tests.arbiter.soak import MUTANTS, PHASES, RunResult, make_plan, run_many

SEEDS = range(1, 201)
MORE_SEEDS = range(100_000, 110_000)
"""Run as needed until a process was killed in every phase: which phase that is depends on timing"""


def has_kills(seed: int) -> bool:
    plan = make_plan(seed)
    return bool(plan.killed_in or plan.kills or plan.restart_all_at)


def run_until_killed_in(phase: str) -> list[RunResult]:
    """Runs interleavings whose plan kills a process at the start of `phase`, until one was."""
    planned = (seed for seed in MORE_SEEDS if phase in make_plan(seed).killed_in.values())
    seeds = list(itertools.islice(planned, 60))
    results: list[RunResult] = []
    for start in range(0, len(seeds), 6):
        results += run_many(seeds[start : start + 6], at_once=6)
        if any(phase in result.killed_in for result in results):
            break
    return results


def test_no_interleaving_shares_the_gpu_loses_a_request_or_leaves_one_waiting() -> None:
    results = run_many(list(SEEDS), at_once=6)
    killed_in = collections.Counter(phase for result in results for phase in result.killed_in)
    for phase in PHASES:
        if not killed_in[phase]:
            results += run_until_killed_in(phase)
    killed_in = collections.Counter(phase for result in results for phase in result.killed_in)
    more = [result.seed for result in results[len(SEEDS) :]]
    print(f"seeds {SEEDS.start} to {SEEDS.stop - 1} and {more}; {killed_in}")
    assert {result.seed: result.errors for result in results if result.errors} == {}
    assert sum(has_kills(result.seed) for result in results) >= 20
    assert set(killed_in) == set(PHASES)
    assert sum(result.drawn for result in results) > 200
    assert sum(result.served for result in results) > 200


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name])
def test_the_interleavings_find_a_switchover_that_leaves_out_a_check(mutant: str) -> None:
    # Which of them meet the moment of the missing check depends on timing: nearly always one of the first twelve.
    for start in range(1, 241, 12):
        results = run_many(list(range(start, start + 12)), at_once=6, mutant=mutant)
        if any(result.errors for result in results):
            return
    pytest.fail("240 interleavings found no error")
