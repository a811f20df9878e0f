"""Which models several engines can draw together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from compiler import Catalogue
from errors import EngineNotListed, FilesMissing
from generation import ModelState, StageState
from generation.model_state import FileToGet
from status import ModelStates
from status.merged_models import EngineModels, merge_models

READY = ModelState("", is_ready=True, is_drawable=True)
PARTLY = replace(READY, is_ready=False, error=FilesMissing("one"), files=(FileToGet("vae", None, None),))
LACKS_ONE = replace(PARTLY, is_drawable=False)
LACKS_TWO = replace(LACKS_ONE, files=(*LACKS_ONE.files, FileToGet("clip", None, None)))
TOO_LARGE = replace(READY, fits_gpu=False)


@pytest.fixture
def ids(shipped_catalogue: Catalogue) -> list[str]:
    return [model.id for model in shipped_catalogue.visible_models]


def engine(
    name: str,
    states: Iterable[tuple[str, ModelState]],
    *,
    is_complete: bool = True,
    is_away: bool = False,
    may_draw: Callable[[str], bool] = lambda model: True,
    stages: tuple[StageState, ...] = (),
) -> EngineModels:
    of_models = tuple(replace(state, id=id) for id, state in states if may_draw(id))
    return EngineModels(name, ModelStates(of_models, is_complete, stages), is_away, may_draw)


def all_of(ids: list[str], state: ModelState, **changes: ModelState) -> list[tuple[str, ModelState]]:
    return [(id, changes.get(id, state)) for id in ids]


@pytest.mark.parametrize(
    ("states", "best", "able"),
    [
        ((LACKS_ONE, READY), READY, ("e1",)),
        ((READY, READY), READY, ("e0", "e1")),
        ((LACKS_TWO, LACKS_ONE), LACKS_ONE, ()),
        ((LACKS_ONE, PARTLY), PARTLY, ("e1",)),
        ((PARTLY, READY), READY, ("e0", "e1")),
        ((TOO_LARGE, READY), READY, ("e0", "e1")),
        ((TOO_LARGE, LACKS_ONE), TOO_LARGE, ("e0",)),
    ],
)
def test_a_model_is_as_good_as_on_its_best_engine(
    shipped_catalogue: Catalogue,
    ids: list[str],
    states: tuple[ModelState, ...],
    best: ModelState,
    able: tuple[str, ...],
) -> None:
    parts = [engine(f"e{index}", all_of(ids, state)) for index, state in enumerate(states)]
    for order in (parts, parts[::-1]):
        merged = merge_models(shipped_catalogue, order)
        assert merged is not None
        assert [state.id for state in merged.states] == ids
        assert {replace(state, id="") for state in merged.states} == {best}
        assert merged.engines is not None
        assert all(set(names) == set(able) for names in merged.engines.values())
        assert merged.is_complete


def test_a_model_that_no_engine_lists_is_not_ready(shipped_catalogue: Catalogue, ids: list[str]) -> None:
    first, second, *others = ids
    merged = merge_models(
        shipped_catalogue,
        [
            engine("e0", all_of(ids, READY), may_draw=lambda model: model == first),
            engine("e1", all_of(ids, LACKS_ONE), may_draw=lambda model: model == second),
        ],
    )
    assert merged is not None
    assert merged.is_complete
    states = {state.id: state for state in merged.states}
    assert states[first].is_ready
    assert states[second].missing == ("vae",)
    for other in others:
        assert isinstance(states[other].error, EngineNotListed)
        assert (states[other].is_drawable, states[other].group) == (False, "not_drawable")


def test_an_engine_that_does_not_answer_keeps_its_states_and_holds_nobody_up(
    shipped_catalogue: Catalogue, ids: list[str]
) -> None:
    dead = engine("e0", all_of(ids, READY)[:1], is_complete=False, is_away=True)
    alive = engine("e1", all_of(ids, LACKS_ONE))
    merged = merge_models(shipped_catalogue, [dead, alive])
    assert merged is not None
    assert (merged.is_complete, merged.unknown_engines) == (True, frozenset())
    assert [state.is_ready for state in merged.states] == [True, *[False] * (len(ids) - 1)]
    never_seen = EngineModels("e2", None, True, lambda model: True)
    merged = merge_models(shipped_catalogue, [never_seen, alive])
    assert merged is not None
    assert (merged.is_complete, merged.unknown_engines) == (True, {"e2"})
    assert merge_models(shipped_catalogue, [never_seen]) is None


def test_the_check_is_complete_when_each_engine_that_answers_has_checked_all(
    shipped_catalogue: Catalogue, ids: list[str]
) -> None:
    checked = engine("e0", all_of(ids, LACKS_ONE))
    begun = engine("e1", all_of(ids, READY)[:3], is_complete=False)
    new = EngineModels("e1", None, False, lambda model: True)
    for other in (begun, new):
        merged = merge_models(shipped_catalogue, [checked, other])
        assert merged is not None
        assert not merged.is_complete


def test_a_stage_has_the_values_of_the_engine_that_can_do_most(
    shipped_catalogue: Catalogue, ids: list[str]
) -> None:
    stages = [StageState("upscale", values, (2, 4)) for values in ((), (2, 4), (2,))]
    parts = [engine(f"e{index}", all_of(ids, READY), stages=(stage,)) for index, stage in enumerate(stages)]
    merged = merge_models(shipped_catalogue, parts)
    assert merged is not None
    assert merged.stages == (stages[1],)
