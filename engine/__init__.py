"""The engine room: speaks ComfyUI's HTTP and WebSocket, and knows how a job ends."""

from engine.choice import EngineChoice
from engine.client import Engine, upload_name
from engine.host import Host
from engine.tenancy import EngineTenant
from engine.values import EngineStats, Outcome, Picture, Preview, Progress, QueueState

__all__ = [
    "Engine",
    "EngineChoice",
    "EngineStats",
    "EngineTenant",
    "Host",
    "Outcome",
    "Picture",
    "Preview",
    "Progress",
    "QueueState",
    "upload_name",
]
