"""The engine room: speaks ComfyUI's HTTP and WebSocket, and knows how a job ends."""

from engine.client import Engine, upload_name
from engine.gpu_tenant import EngineTenant
from engine.process import EngineProcess
from engine.selection import EngineSelector
from engine.values import EngineStats, Outcome, Picture, Preview, Progress, QueueState

__all__ = [
    "Engine",
    "EngineProcess",
    "EngineSelector",
    "EngineStats",
    "EngineTenant",
    "Outcome",
    "Picture",
    "Preview",
    "Progress",
    "QueueState",
    "upload_name",
]
