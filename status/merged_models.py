"""Which models can be drawn, from what each of several engines can draw. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compiler import Catalogue, Model
from errors import EngineNotListed
from generation import ModelState, StageState
from status.engine_readiness import ModelStates


@dataclass(frozen=True)
class EngineModels:
    """What is known of one engine. `known`: None before the first check. `is_away`: it does not answer, so that `known`
    does not change. `may_draw`: whether it may draw a model."""

    name: str
    known: ModelStates | None
    is_away: bool
    may_draw: Callable[[str], bool]


def merge_models(catalogue: Catalogue, engines: Sequence[EngineModels]) -> ModelStates | None:
    """A model is as good as on the best engine that may draw it: one that can, else the one that lacks least. None if
    nothing is known of any engine."""
    known = [each for each in engines if each.known is not None]
    if not known:
        return None
    tables = [(each.name, {state.id: state for state in each.known.states}) for each in known if each.known]
    states, able = list[ModelState](), dict[str, tuple[str, ...]]()
    is_complete = all(each.is_away or (each.known and each.known.is_complete) for each in engines)
    for model in catalogue.visible_models:
        found = [(name, table[model.id]) for name, table in tables if model.id in table]
        able[model.id] = tuple(name for name, state in found if state.is_drawable)
        if found:
            states.append(min((state for _, state in found), key=_badness))  # the first of equals
        elif any(each.may_draw(model.id) for each in engines):
            is_complete = False
        else:
            states.append(_not_listed(model, catalogue))
    return ModelStates(
        tuple(states),
        bool(is_complete),
        stages=tuple(_best_stages([each.known for each in known if each.known])),
        engines=able,
        unknown_engines=frozenset(each.name for each in engines if each.known is None),
    )


def _badness(state: ModelState) -> tuple[bool, bool, int, bool]:
    lacking = len(state.files) + len(state.lacks) + (state.needs_comfyui is not None)
    return not state.is_ready, not state.is_drawable, lacking, state.fits_gpu is False


def _not_listed(model: Model, catalogue: Catalogue) -> ModelState:
    return ModelState(
        model.id,
        is_ready=False,
        is_drawable=False,
        error=EngineNotListed(
            f"None of the engines may draw {model.id}: no entry under `engines` lists it.", model=model.id
        ),
        refused_tasks=tuple(catalogue.undrawable.get(model.id, ())),
    )


def _best_stages(known: Sequence[ModelStates]) -> Iterator[StageState]:
    """Of each stage the state on the engine that can do most of its values."""
    ids = dict.fromkeys(stage.id for states in known for stage in states.stages)
    for id in ids:
        found = [stage for states in known for stage in states.stages if stage.id == id]
        yield max(found, key=lambda stage: len(stage.values))
