"""One ComfyUI of this host and the GPU that it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arbiter import Arbiter
from engine import Engine, EngineProcess, EngineSelector, EngineTenant
from engines.measured_costs import CostStore

_NOT_STARTED = EngineProcess()


def _always(engine: Engine) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class EngineUnit:
    """`arbiter`: that of its GPU. `gpu`: what the setting calls it. `url`: of the setting; empty if it was found. `models`:
    the ids of those that it may draw; None: all. `weight`: how fast it is compared with the others, until that is measured.
    `can_start`: it may be down while a request is prepared, because it is started when its GPU is leased. `uses_gpu`: false
    for an engine whose jobs need no GPU and so wait for none. `costs`: None for the only engine, where nothing is chosen by
    them."""

    name: str
    selector: EngineSelector
    tenant: EngineTenant
    arbiter: Arbiter
    process: EngineProcess = _NOT_STARTED
    gpu: str = ""
    url: str = ""
    models: frozenset[str] | None = None
    weight: float = 1.0
    can_start: bool = False
    uses_gpu: Callable[[Engine], bool] = _always
    costs: CostStore | None = None

    def engine(self) -> Engine:
        """The current one. Raises EngineUnreachable if none is known."""
        return self.selector.current()
