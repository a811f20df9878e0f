"""What the log says about the engine and the models when a server starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from status.engine_readiness import EngineState, ModelStates
from status.readiness import Readiness

log = logging.getLogger("easel")

_PROBE_TIMEOUT_S = 5.0
_ENGINE_TIMEOUT_S = 600.0
"""ComfyUI may be started after Easel"""
_MODELS_TIMEOUT_S = 300.0
_INTERVAL_S = 1.0
_MAX_NAMES = 5


def log_start(
    readiness: Readiness,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Log which engines there are, and how many models are ready; waits for one that can draw. If an engine does not answer,
    that is logged at once. For a thread of its own."""
    deadline = clock() + _ENGINE_TIMEOUT_S
    states = readiness.engines(_PROBE_TIMEOUT_S)
    for unit, state in states:
        _log_engine("engine" if len(states) == 1 else f"engine {unit.name}", state)
    engine = readiness.engine(_PROBE_TIMEOUT_S)
    was_away = engine.error is not None
    while engine.error is not None and clock() < deadline:
        sleep(_INTERVAL_S)
        engine = readiness.engine(_PROBE_TIMEOUT_S)
    if engine.error is not None:
        return
    if was_away:
        _log_engine("engine", engine)
    deadline = clock() + _MODELS_TIMEOUT_S
    while not ((models := readiness.models(_PROBE_TIMEOUT_S)) and models.is_complete) and clock() < deadline:
        sleep(_INTERVAL_S)
    if models is not None:
        log.info("models: %s", _models(models))


def _log_engine(name: str, state: EngineState) -> None:
    if state.error is not None:
        log.warning("%s: cannot draw yet: %s: %s", name, state.error.code, state.error.message)
    else:
        log.info("%s: %s", name, _engine(state))


def _engine(state: EngineState) -> str:
    if state.url is None:  # other hosts draw
        drawn_by = "the sketch engine, which runs no model" if state.is_sketch else f"ComfyUI {state.version}"
        return f"other hosts draw; one that is ready has {drawn_by}"
    if state.is_sketch:
        return f"the sketch engine at {state.url}, which runs no model"
    return f"ComfyUI {state.version} at {state.url}"


def _models(models: ModelStates) -> str:
    ready = [model.id for model in models.states if model.is_ready]
    missing = [model.id for model in models.states if not model.is_ready]
    text = f"{len(ready)} ready{_named(ready)}, {len(missing)} with files or nodes missing{_named(missing)}"
    return text if models.is_complete else f"{text}; others are not checked yet"


def _named(names: list[str]) -> str:
    further = len(names) - _MAX_NAMES
    listed = ", ".join(names[:_MAX_NAMES])
    return "" if not names else f" ({listed}{f' and {further} more' if further > 0 else ''})"
