"""One look at everything: who has the GPU, whether pictures can be drawn now, and which models are complete."""

from generation import ModelState
from status.engine_readiness import EngineState, ModelStates
from status.host_readiness import HostReadiness
from status.last_engine_error import LastEngineError
from status.readiness import Readiness
from status.start_report import log_start
from status.system_status import SystemStatus

__all__ = [
    "EngineState",
    "HostReadiness",
    "LastEngineError",
    "ModelState",
    "ModelStates",
    "Readiness",
    "SystemStatus",
    "log_start",
]
