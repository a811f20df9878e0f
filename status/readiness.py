"""Whether pictures can be drawn now, and which models: what the engines together can do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from compiler import Catalogue
from engines import EngineUnit
from errors import EngineDrained
from generation import Generator
from status.engine_readiness import EngineReadiness, EngineState, ModelStates
from status.merged_models import EngineModels, merge_models

_LOOK_INTERVAL_S = 0.01


class Readiness:
    """The state of all engines and of the visible models. One per process; thread-safe."""

    def __init__(self, generator: Generator) -> None:
        self._generator, self._fleet = generator, generator.fleet
        self._known: dict[EngineUnit, EngineReadiness] = {}
        self._lock = threading.Lock()
        self._merged: tuple[list[object], ModelStates | None] = [], None
        """What the states of the models were made from, and they"""

    def engine(self, timeout_s: float) -> EngineState:
        """The state of an engine that can draw; if none can, that of the first one that answers, or of the first one. One
        that is drained cannot. Of an engine that does not answer in time, that it does not answer, or the last state if it
        is only busy."""
        units = self._fleet.units
        if len(units) == 1:
            return self._with_drain(units[0], self.of(units[0]).engine(timeout_s))
        states = [
            self._with_drain(unit, state)
            for unit, state in zip(
                units, self._states(units, timeout_s, stops_at=self._can_draw), strict=True
            )
        ]
        able = next((state for state in states if state.error is None), None)
        return able or next((state for state in states if state.reachable), states[0])

    def engines(self, timeout_s: float) -> list[tuple[EngineUnit, EngineState]]:
        """The state of each engine, whether it is drained or not."""
        units = self._fleet.units
        return list(zip(units, self._states(units, timeout_s), strict=True))

    def can_draw(self, models: ModelStates) -> bool:
        """Whether one of the models can be drawn, by an engine that answered when it was asked last and is not drained."""
        usable = {
            unit.name
            for unit in self._fleet.units
            if self.of(unit).can_draw and self._fleet.drained_since(unit) is None
        }
        return any(
            state.is_drawable and (models.engines is None or not usable.isdisjoint(models.engines[state.id]))
            for state in models.states
        )

    def of(self, unit: EngineUnit) -> EngineReadiness:
        """That of one engine."""
        with self._lock:
            known = self._known.get(unit)
            if known is None:
                # Those that were removed from the settings are forgotten.
                self._known = {each: self._known[each] for each in self._fleet.units if each in self._known}
                known = EngineReadiness(self._generator, unit, partial(self._fleet.lists, unit))
                self._known[unit] = known
            return known

    def models(self, timeout_s: float) -> ModelStates | None:
        """The states of the visible models; those that are known if the check does not end in time, None if there are
        none. An engine that does not answer keeps those that it had."""
        units = self._fleet.units
        if len(units) == 1:
            return self.of(units[0]).models(timeout_s)
        parts = [self.of(unit) for unit in units]
        deadline = time.monotonic() + timeout_s
        while self._is_checking(parts) and time.monotonic() < deadline:
            time.sleep(_LOOK_INTERVAL_S)
        return self._merge(units, parts)

    def _is_checking(self, parts: Sequence[EngineReadiness]) -> bool:
        """All begin their checks at the same time."""
        checking = [part.is_checking() for part in parts]
        return any(checking)

    def _merge(self, units: Sequence[EngineUnit], parts: Sequence[EngineReadiness]) -> ModelStates | None:
        """A new one only if something has changed: with 10,000 models it takes a moment, and equal ones are compared
        faster."""
        catalogue: Catalogue = self._generator.catalogue()
        made_from: list[object] = [catalogue, *units]
        for part in parts:
            made_from += [part.known_models, part.is_away]
        before, merged = self._merged
        if len(before) != len(made_from) or any(a is not b for a, b in zip(before, made_from, strict=True)):
            engines = [
                EngineModels(unit.name, part.known_models, part.is_away, partial(self._fleet.lists, unit))
                for unit, part in zip(units, parts, strict=True)
            ]
            merged = merge_models(catalogue, engines)
            self._merged = made_from, merged
        return merged

    def _states(
        self,
        units: Sequence[EngineUnit],
        timeout_s: float,
        stops_at: Callable[[EngineUnit, EngineState], bool] = lambda unit, state: False,
    ) -> list[EngineState]:
        """Of all engines, asked at the same time. Ends early at a state of which `stops_at` is true."""
        parts = [self.of(unit) for unit in units]
        deadline = time.monotonic() + timeout_s
        while True:
            found = [part.state() for part in parts]
            has_ended = all(found) or any(
                state is not None and stops_at(unit, state) for unit, state in zip(units, found, strict=True)
            )
            if has_ended or time.monotonic() >= deadline:
                break
            time.sleep(_LOOK_INTERVAL_S)
        return [
            state or part.state_without_answer(timeout_s) for part, state in zip(parts, found, strict=True)
        ]

    def _can_draw(self, unit: EngineUnit, state: EngineState) -> bool:
        return state.error is None and self._fleet.drained_since(unit) is None

    def _with_drain(self, unit: EngineUnit, state: EngineState) -> EngineState:
        if state.error is not None or self._fleet.drained_since(unit) is None:
            return state
        return replace(state, error=EngineDrained(f"The engine {unit.name} is drained.", engines=unit.name))
