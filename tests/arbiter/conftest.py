"""Arbiters whose reconcilers are stopped at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter
from tests.arbiter.fakes import FakeEngine, FakeStacks, Stage, quick

MakeArbiter = Callable[..., Arbiter]


@pytest.fixture
def stacks() -> FakeStacks:
    return FakeStacks()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_arbiter(tmp_path: Path, stacks: FakeStacks, engine: FakeEngine) -> Iterator[MakeArbiter]:
    """Makes an arbiter over the two fakes, with a reconciler at work unless `reconciles` is false; policy by name."""
    made: list[Arbiter] = []

    def make(
        *, reconciles: bool = True, measure: Callable[[], int | None] = lambda: None, **policy: Any
    ) -> Arbiter:
        arbiter = Arbiter(
            tmp_path / "gpu",
            tenants={"inference": stacks, "generation": engine},
            policy=quick(**policy),
            measure=measure,
            engine_down=engine.is_down,
        )
        if reconciles:
            arbiter.reconciler.start()
        made.append(arbiter)
        return arbiter

    yield make
    for arbiter in made:
        arbiter.reconciler.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "gpu")
