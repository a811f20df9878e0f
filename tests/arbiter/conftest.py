"""Arbiters whose reconcilers are stopped at the end of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter
from tests.arbiter.fakes import FakeEngine, FakeStacks, Harness, quick_policy

MakeArbiter = Callable[..., Arbiter]


@pytest.fixture
def stacks() -> FakeStacks:
    return FakeStacks()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_arbiter(tmp_path: Path, stacks: FakeStacks, engine: FakeEngine) -> Iterator[MakeArbiter]:
    """Makes an arbiter over the two fakes, with a running reconciler unless `reconciles` is false; policy by name."""
    arbiters: list[Arbiter] = []

    def make(
        *, reconciles: bool = True, available_bytes: Callable[[], int | None] = lambda: None, **policy: Any
    ) -> Arbiter:
        arbiter = Arbiter(
            tmp_path / "gpu",
            tenants={"inference": stacks, "generation": engine},
            policy=quick_policy(**policy),
            available_bytes=available_bytes,
            engine_down=engine.is_down,
        )
        if reconciles:
            arbiter.reconciler.start()
        arbiters.append(arbiter)
        return arbiter

    yield make
    for arbiter in arbiters:
        arbiter.reconciler.stop()


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path / "gpu")
