"""What an engine lacks for a stage (`upscale`, `background`), as a value: the same facts for the status, the
list of models and the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compiler import Catalogue, Stage, sample_graph
from engine import Engine
from errors import EaselError, EngineTooOld, EngineUnreachable, FilesMissing
from generation.model_state import FileToGet, missing_files


@dataclass(frozen=True)
class StageState:
    """`values`: those of the request field that the engine can do now. `error`: why not all."""

    id: str
    values: tuple[Any, ...]
    all_values: tuple[Any, ...]
    error: EaselError | None = field(default=None, compare=False)
    files: tuple[FileToGet, ...] = ()
    """Those that the engine lacks"""
    lacks: tuple[str, ...] = ()
    """What else it lacks, as sentences"""
    needs_comfyui: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.values == self.all_values

    @property
    def pull(self) -> str | None:
        """The command that gets its missing files"""
        return f"easel pull-model {self.id}" if self.files else None

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON, without the id."""
        return {
            "values": list(self.values),
            "missing_values": [value for value in self.all_values if value not in self.values],
            "code": self.error.code if self.error else None,
            "files": [file.facts for file in self.files],
            "lacks": list(self.lacks),
            "needs_comfyui": self.needs_comfyui,
            "pull": self.pull,
        }


Check = Callable[[Stage, Any, Catalogue, Engine], None]
"""Raises what the engine lacks for a graph with the stage; see Generator.check_stage"""


def stage_states(catalogue: Catalogue, engine: Engine, check: Check) -> tuple[StageState, ...]:
    """The state of each stage. Raises EngineUnreachable if the engine does not answer."""
    return tuple(_state(stage, catalogue, engine, check) for stage in catalogue.stages.values())


def _state(stage: Stage, catalogue: Catalogue, engine: Engine, check: Check) -> StageState:
    values, errors = [], list[EaselError]()
    for value in stage.values:
        try:
            catalogue.licences.check(stage)
            check(stage, sample_graph(stage, value, catalogue), catalogue, engine)
        except EngineUnreachable as error:
            if not error.is_answered:
                raise
            errors.append(error)
        except EaselError as error:
            errors.append(error)
        else:
            values.append(value)
    too_old = next((error for error in errors if isinstance(error, EngineTooOld)), None)
    others = [error.message for error in errors if not isinstance(error, FilesMissing | EngineTooOld)]
    return StageState(
        stage.id,
        tuple(values),
        tuple(stage.values),
        error=errors[0] if errors else None,
        files=missing_files(stage, errors),
        lacks=tuple(dict.fromkeys(others)),
        needs_comfyui=str(too_old.details["needs"]) if too_old else None,
    )
