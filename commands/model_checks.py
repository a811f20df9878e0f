"""The state of models on an engine, for the commands that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from commands.context import services
from compiler import Catalogue, Model, Task, compile_workflow, sample_requests
from engine import Engine, EngineStats
from errors import EaselError, EngineUnreachable, InvalidValue, list_names
from generation import ModelState, model_state


@dataclass(frozen=True)
class CheckedModel:
    """A model, the faults of its tasks, and its state on the engine, if one was asked."""

    model: Model
    faults: Mapping[Task, tuple[str, ...]]
    state: ModelState | None
    is_refused: bool
    """Because of its licence"""

    @property
    def group(self) -> str:
        if self.faults:
            return "faulty"
        if self.is_refused:
            return "refused"
        return self.state.group if self.state else "valid"


def chosen_models(catalogue: Catalogue, word: str | None) -> list[Model]:
    """The models with `word` in their family, id or title; all without a word. Raises InvalidValue if none has it."""
    models = list(catalogue.models.values())
    if word is None:
        return models
    sought = word.casefold()
    found = [model for model in models if sought in f"{model.family}\n{model.id}\n{model.title}".casefold()]
    if not found:
        families = list_names(sorted({model.family for model in models}))
        raise InvalidValue(f"No model has {word!r} in its family, id or title; families: {families}.")
    return found


def checked_model(
    model: Model, catalogue: Catalogue, engine: Engine | None, stats: EngineStats | None
) -> CheckedModel:
    """The state of `model` on `engine`, which says `stats` about itself; None: as the catalogue alone says. Raises
    EngineUnreachable."""
    faults, is_refused = catalogue.undrawable.get(model.id, {}), catalogue.licences.blocks_drawing(model)
    if engine is None or is_refused:
        return CheckedModel(model, faults, None, is_refused)
    errors: list[EaselError] = []
    for request in sample_requests(model, catalogue):
        try:
            # The engine was asked for nothing before this command, so what it said about a node is not old.
            services().generator.check_graphs(compile_workflow(request, catalogue), catalogue, engine)
        except EngineUnreachable:
            raise
        except EaselError as error:
            errors.append(error)
    return CheckedModel(model, faults, model_state(model, catalogue, errors, stats), is_refused)
