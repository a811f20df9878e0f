"""What one engine says about itself when it is probed: plain JSON, so that the processes can share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from deadline import time_limit
from engine import Engine, EngineStats, QueueState
from engines import EngineUnit
from errors import EaselError, EngineUnreachable
from status.engine_readiness import EngineReadiness

Facts = Mapping[str, Any]
"""`reachable`; `stats`: the fields of `EngineStats`, `url`, `tells_gpu_memory` and `picture_delivery`, or None; `running`,
`pending`: the prompt ids in ComfyUI's queue; `problem`: code and message or None; `container`: the state of its process"""

_NO_ANSWER: Facts = {"reachable": False, "stats": None, "running": [], "pending": []}
UNKNOWN_FACTS: Facts = {**_NO_ANSWER, "problem": None, "container": "absent"}
PROBE_TIMEOUT_S = 1.5


def problem_of(error: EaselError | None) -> dict[str, str] | None:
    """The message is without secrets, like every message of an error."""
    return {"code": error.code, "message": error.message} if error else None


class EngineProbe:
    """Of one engine. `before`: the facts of the last probe, which hold for an engine that is only busy."""

    def __init__(self, unit: EngineUnit, readiness: EngineReadiness, before: Facts) -> None:
        self._unit, self._readiness, self._before = unit, readiness, before

    def parts(self) -> Mapping[Callable[[], Facts], Facts]:
        """What is to be asked, at the same time -> the facts if it fails or does not end in time."""
        return {
            self._stats_and_queue: _NO_ANSWER,
            self._problem: {},
            self._container: {"container": "absent"},
        }

    def _stats_and_queue(self) -> Facts:
        engine, before = self._unit.engine(), self._before
        try:
            with time_limit(PROBE_TIMEOUT_S):
                return _engine_values(engine, *engine.stats_and_queue(PROBE_TIMEOUT_S))
        except EngineUnreachable as error:
            was_reachable = before["reachable"] and (before["stats"] or {}).get("url") == engine.url
            if not (was_reachable and engine.is_busy(error)):
                raise
            return {name: before[name] for name in _NO_ANSWER}

    def _problem(self) -> Facts:
        """Why the engine cannot draw now."""
        return {"problem": problem_of(self._readiness.engine(PROBE_TIMEOUT_S).error)}

    def _container(self) -> Facts:
        return {"container": self._unit.process.state()}


def _engine_values(engine: Engine, stats: EngineStats, queue: QueueState) -> Facts:
    return {
        "reachable": True,
        "stats": {
            **asdict(stats),
            "url": engine.url,
            "tells_gpu_memory": stats.reports_gpu_memory,
            "picture_delivery": _picture_delivery(engine),
        },
        "running": list(queue.running),
        "pending": list(queue.pending),
    }


def _picture_delivery(engine: Engine) -> str | None:
    """How pictures come from the engine; None if it does not say in time."""
    try:
        return "websocket" if engine.sends_pictures else "file"
    except EaselError:
        return None
