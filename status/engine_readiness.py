"""Whether one engine can draw now: it answers, its WebSocket opens, and which models have all their nodes and files there.
Shared by all threads of a process, and never waits for an engine that does not respond, or for the check of a large
catalogue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler import Catalogue, Model, compile_workflow, sample_graph, sample_requests
from deadline import time_limit
from engine import Engine, EngineStats
from engines import EngineUnit
from errors import EaselError, EngineUnreachable, LicenceNotAccepted, ModelNotDrawable
from generation import Generator, ModelState, StageState, model_state, stage_states
from status.shared_probe import SharedProbe

log = logging.getLogger("easel.ready")
_ENGINE_INTERVAL_S = 1.0
_ENGINE_TIMEOUT_S = 3.0
"""For one probe; who asks waits less"""
_MODELS_INTERVAL_S = 2.0
"""A file that was added or deleted shows after about this time"""
_MODELS_TIMEOUT_S = 300.0
"""An engine that is loading a large model may take 20 s for each node; until then the last result holds"""
_PUBLISH_INTERVAL_S = 0.5
"""Between two publications while models are checked: 10,000 take half a minute"""


@dataclass(frozen=True)
class EngineState:
    """`error`: why it cannot draw now, or None. An engine without WebSocket is reachable and has an error."""

    reachable: bool
    url: str | None = None
    version: str | None = None
    is_sketch: bool = False
    error: EaselError | None = None


@dataclass(frozen=True)
class ModelStates:
    """The states of the visible models, as far as they are known. Of one engine: of those that it may draw."""

    states: tuple[ModelState, ...]
    is_complete: bool
    """Whether every visible model was checked"""
    stages: tuple[StageState, ...] = ()
    engines: Mapping[str, tuple[str, ...]] | None = None
    """model -> the engines that can draw it, for some of its tasks at least; None if there is only one engine"""
    unknown_engines: frozenset[str] = frozenset()
    """Those that have not answered since this process began"""


class EngineReadiness:
    """The state of one engine and of its models. `may_draw`: whether it may draw a model."""

    def __init__(
        self, generator: Generator, unit: EngineUnit, may_draw: Callable[[str], bool] = lambda model: True
    ) -> None:
        self._generator, self._unit = generator, unit
        self._engine_probe = SharedProbe(self._probe_engine, _ENGINE_INTERVAL_S)
        self._models_probe = SharedProbe(self._probe_models, _MODELS_INTERVAL_S)
        self._checks = _Checks(generator, may_draw)
        self._last_usable: tuple[Engine, EngineState] | None = None
        self.is_away = False
        """Whether its models could not be checked when that was tried last"""

    def engine(self, timeout_s: float) -> EngineState:
        """The state of the engine; of one that does not answer in time, that it does not answer, or the last one if it is
        only busy."""
        return self._engine_probe.latest(timeout_s) or self.state_without_answer(timeout_s)

    def state(self) -> EngineState | None:
        """The same, without waiting; None while it is being found out."""
        return self._engine_probe.latest(0)

    @property
    def can_draw(self) -> bool:
        """As far as that was found out last; waits for nothing."""
        last = self._engine_probe.last
        return last is not None and last.error is None

    def state_without_answer(self, timeout_s: float) -> EngineState:
        """The state of an engine that did not answer within that time."""
        error = EngineUnreachable(f"ComfyUI does not answer within {timeout_s:g} s.", slow=True)
        return self._state_if_busy(error) or EngineState(reachable=False, error=error)

    def _state_if_busy(self, error: EaselError) -> EngineState | None:
        if self._last_usable is None or not isinstance(error, EngineUnreachable):
            return None
        engine, state = self._last_usable
        return state if engine.is_busy(error) else None

    def models(self, timeout_s: float) -> ModelStates | None:
        """The states of the visible models; those that are known if the check does not end in time, None if there are
        none."""
        return self._models_probe.latest(timeout_s) or self._checks.known

    def is_checking(self) -> bool:
        """Whether the models are being checked, by an engine that answers; begins to check them when it is time."""
        if self._models_probe.latest(0) is not None or self.is_away:
            return False
        return self._engine_probe.last is None or self.can_draw

    @property
    def known_models(self) -> ModelStates | None:
        """The states that were found out last, also while they are checked again."""
        return self._checks.known

    def _probe_engine(self) -> EngineState:
        url = version = None
        reachable = is_sketch = False
        try:
            with time_limit(_ENGINE_TIMEOUT_S):
                engine = self._unit.engine()
                stats = engine.stats()
                reachable, url, version, is_sketch = True, engine.url, stats.version, stats.is_sketch
                engine.connect()
        except EaselError as error:
            return self._state_if_busy(error) or EngineState(reachable, url, version, is_sketch, error)
        state = EngineState(reachable, url, version, is_sketch)
        self._last_usable = engine, state
        return state

    def _probe_models(self) -> ModelStates | None:
        """None if the engine does not answer."""
        try:
            with time_limit(_MODELS_TIMEOUT_S):
                self._checks.update(self._generator.catalogue(), self._unit.engine())
        except EaselError:
            self.is_away = True
            return None
        self.is_away = False
        return self._checks.known


@dataclass(frozen=True)
class _Check:
    state: ModelState
    classes: frozenset[str]
    """The nodes that the state depends on"""


class _Checks:
    """The checks of all visible models that the engine may draw. A model is checked again only if the catalogue or the
    engine is another one, or if the engine says something else about a node that the model uses. For one thread at a time,
    but for `known`."""

    def __init__(self, generator: Generator, may_draw: Callable[[str], bool] = lambda model: True) -> None:
        self._generator, self._may_draw = generator, may_draw
        self.known: ModelStates | None = None
        """Published while a check of many models runs, too"""
        self._of: tuple[Catalogue, Engine] | None = None
        self._listed: tuple[Catalogue, list[Model]] | None = None
        self._checks: dict[str, _Check] = {}
        self._last_states: dict[str, ModelState] = {}
        """Of models that are to be checked again"""
        self._descriptions: dict[str, Any] = {}
        """node class -> what the engine says about it, or why it does not"""
        self._stats: EngineStats | None = None
        """Of the engine, in this round"""
        self._stages: tuple[StageState, ...] = ()
        self._class_sets: dict[tuple[str, ...], frozenset[str]] = {}
        """One object for equal sets: 10,000 models use few different ones, each of which takes 0.7 kB"""

    def update(self, catalogue: Catalogue, engine: Engine) -> None:
        """Check what has changed. Raises EngineUnreachable if the engine does not answer; what was checked until then
        stays known."""
        if self._of is None or self._of[1] is not engine:
            # What another engine has says nothing about this one.
            self.known, self._checks, self._last_states, self._descriptions = None, {}, {}, {}
        elif self._of[0] is not catalogue:
            self._descriptions, self._class_sets = {}, {}
            self._forget(set(self._checks))
        self._of = catalogue, engine
        before, self._stats = self._stats, engine.stats()
        if before is not None and _identity(before) != _identity(self._stats):
            engine.version(fresh=True)
            self._forget(set(self._checks))
        self._forget_changed()
        self._check_stages()
        published_at = 0.0  # the first one at once: pictures can be drawn
        for model in self._models(catalogue):
            if model.id in self._checks:
                continue
            began_at = time.thread_time()
            self._checks[model.id] = self._check(model)
            if time.monotonic() - published_at >= _PUBLISH_INTERVAL_S:
                self._publish()
                published_at = time.monotonic()
            # As long as it took: requests need the interpreter, too.
            time.sleep(time.thread_time() - began_at)
        self._last_states = {}
        self._publish()

    def _models(self, catalogue: Catalogue) -> list[Model]:
        if self._listed is None or self._listed[0] is not catalogue:
            models = [model for model in catalogue.visible_models if self._may_draw(model.id)]
            self._listed = catalogue, models
        return self._listed[1]

    def _forget_changed(self) -> None:
        """Ask the engine again about each node, and forget the checks that depend on a changed one."""
        before, self._descriptions = self._descriptions, {}
        try:
            for name in sorted(before):
                self._describe(name)
        except EaselError:
            self._descriptions = before  # what the checks depend on
            raise
        changed = {name for name, description in before.items() if self._descriptions[name] != description}
        if changed:
            self._forget({name for name, check in self._checks.items() if check.classes & changed})

    def _forget(self, models: set[str]) -> None:
        """Check them again; until then their states stay as they are."""
        self._last_states |= {name: self._checks.pop(name).state for name in models}

    def _publish(self) -> None:
        assert self._of is not None
        models, last = self._models(self._of[0]), self._last_states
        checks = {name: check.state for name, check in self._checks.items()}
        states = tuple(state for model in models if (state := checks.get(model.id) or last.get(model.id)))
        self.known = ModelStates(states, is_complete=len(states) == len(models), stages=self._stages)

    def _check_stages(self) -> None:
        """Raises EngineUnreachable if the engine does not answer."""
        assert self._of is not None
        catalogue, engine = self._of
        for stage in catalogue.stages.values():
            for value in stage.values:
                for node in sample_graph(stage, value, catalogue).values():
                    self._describe(node["class_type"])
        before = {stage.id: stage for stage in self._stages}
        self._stages = stage_states(catalogue, engine, self._generator.check_stage)
        for state in self._stages:
            if state.error is not None and before.get(state.id) != state:
                log.info("`%s` cannot be done now: %s%s", state.id, state.error.message, _remedy(state))

    def _describe(self, name: str) -> Any:
        """What the engine says about a node class in this round. Raises EngineUnreachable if it does not answer."""
        if name not in self._descriptions:
            assert self._of is not None
            try:
                self._descriptions[name] = self._generator.describe_node(name, *self._of)
            except EngineUnreachable as error:
                if not error.is_answered:
                    raise
                self._descriptions[name] = _NotDescribed(error.code, error.message, error)
        return self._descriptions[name]

    def _check(self, model: Model) -> _Check:
        assert self._of is not None
        catalogue, engine = self._of
        requests = sample_requests(model, catalogue)
        errors: list[EaselError] = [] if requests else [_refusal(model, catalogue)]
        used: set[str] = set()
        for request in requests:
            try:
                compiled = compile_workflow(request, catalogue, shares_shapes=False)
                classes = sorted({name for graph in compiled.graphs for name in graph.classes})
                used |= set(classes)
                described = [self._describe(name) for name in classes]
                self._generator.check_graphs(compiled, catalogue, engine)
                errors += [entry.error for entry in described if isinstance(entry, _NotDescribed)][:1]
            except EaselError as error:
                if isinstance(error, EngineUnreachable) and not error.is_answered:
                    raise
                errors.append(error)
        all_classes = self._class_sets.setdefault(tuple(sorted(used)), frozenset(used))
        return _Check(model_state(model, catalogue, errors, self._stats), all_classes)


def _remedy(stage: StageState) -> str:
    return f" {stage.pull} gets it." if stage.pull else ""


def _identity(stats: EngineStats) -> tuple[object, ...]:
    """What of an engine decides whether it can draw a model."""
    return stats.version, stats.device_type, stats.vram_total


def _refusal(model: Model, catalogue: Catalogue) -> EaselError:
    """Why no task of the model can be drawn."""
    try:
        catalogue.licences.check(model)
    except LicenceNotAccepted as error:
        return error
    return ModelNotDrawable("The check of the catalogue refuses it.")


@dataclass(frozen=True)
class _NotDescribed:
    """Why the engine does not describe a node. Equal for equal reasons."""

    code: str
    message: str
    error: EngineUnreachable = field(compare=False)
