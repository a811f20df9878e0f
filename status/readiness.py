"""Whether pictures can be drawn now: the engine answers, its WebSocket opens, and which models have all their nodes and
files. Shared by all threads of a process, and never waits for an engine that does not respond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler import Catalogue, Model, compile_workflow, sample_requests
from deadline import time_limit
from engine import Engine
from errors import EaselError, EngineUnreachable, FilesMissing, ModelNotDrawable
from generation import Generator
from status.shared_probe import SharedProbe

_ENGINE_INTERVAL_S = 1.0
_ENGINE_TIMEOUT_S = 3.0
"""For one probe; who asks waits less"""
_MODELS_INTERVAL_S = 2.0
"""A file that was added or deleted shows after about this time"""
_MODELS_TIMEOUT_S = 300.0
"""An engine that is loading a large model may take 20 s for each node; until then the last result holds"""


@dataclass(frozen=True)
class EngineState:
    """`error`: why it cannot draw now, or None. An engine without WebSocket is reachable and has an error."""

    reachable: bool
    url: str | None = None
    version: str | None = None
    is_sketch: bool = False
    error: EaselError | None = None


@dataclass(frozen=True)
class ModelState:
    """`is_ready`: all of its workflows can be drawn; `is_drawable`: at least one can. `error`: why not all."""

    id: str
    is_ready: bool
    is_drawable: bool
    error: EaselError | None = None
    missing: tuple[str, ...] = ()
    """Names of files that the engine lacks"""
    refused_tasks: tuple[str, ...] = ()
    """Tasks that the check of the catalogue refuses"""


class Readiness:
    """The state of the engine and of the visible models."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._engine_probe = SharedProbe(self._probe_engine, _ENGINE_INTERVAL_S)
        self._models_probe = SharedProbe(self._probe_models, _MODELS_INTERVAL_S)

    def engine(self, timeout_s: float) -> EngineState:
        """The state of the engine; of one that does not answer in time, that it does not answer."""
        state = self._engine_probe.latest(timeout_s)
        if state is not None:
            return state
        error = EngineUnreachable(f"ComfyUI does not answer within {timeout_s:g} s.", slow=True)
        return EngineState(reachable=False, error=error)

    def models(self, timeout_s: float) -> tuple[ModelState, ...] | None:
        """The state of each visible model; the last known one if the engine does not answer in time, None if there is
        none."""
        return self._models_probe.latest(timeout_s) or self._models_probe.last

    def _probe_engine(self) -> EngineState:
        url = version = None
        reachable = is_sketch = False
        try:
            with time_limit(_ENGINE_TIMEOUT_S):
                engine = self._generator.engine()
                stats = engine.stats()
                reachable, url, version, is_sketch = True, engine.url, stats.version, stats.is_sketch
                engine.connect()
        except EaselError as error:
            return EngineState(reachable, url, version, is_sketch, error)
        return EngineState(reachable, url, version, is_sketch)

    def _probe_models(self) -> tuple[ModelState, ...] | None:
        """None if the engine does not answer."""
        try:
            with time_limit(_MODELS_TIMEOUT_S):
                engine, catalogue = self._generator.engine(), self._generator.catalogue()
                node_errors = self._generator.refresh_files(catalogue, engine)
                return tuple(
                    self._model_state(model, catalogue, engine, node_errors)
                    for model in catalogue.visible_models
                )
        except EaselError:
            return None

    def _model_state(
        self, model: Model, catalogue: Catalogue, engine: Engine, node_errors: Mapping[str, EaselError]
    ) -> ModelState:
        """`node_errors`: why the engine does not describe a node, by its class"""
        refused = tuple(catalogue.undrawable.get(model.id, ()))
        requests = sample_requests(model, catalogue)
        errors: list[EaselError] = (
            [] if requests else [ModelNotDrawable("The check of the catalogue refuses it.")]
        )
        for request in requests:
            try:
                compiled = compile_workflow(request, catalogue)
                self._generator.check_graphs(compiled, catalogue, engine)
                classes = {name for graph in compiled.graphs for name in graph.classes}
                errors += [node_errors[name] for name in sorted(classes & node_errors.keys())][:1]
            except EaselError as error:
                if isinstance(error, EngineUnreachable) and not error.is_answered:
                    raise
                errors.append(error)
        missing = {
            str(file["name"]): None
            for error in errors
            if isinstance(error, FilesMissing)
            for file in error.details.get("files", ())
        }
        return ModelState(
            model.id,
            is_ready=not errors,
            is_drawable=len(errors) < len(requests),
            error=errors[0] if errors else None,
            missing=tuple(missing),
            refused_tasks=refused,
        )
