"""The engine room: speaks ComfyUI's HTTP and WebSocket, and knows how a job ends."""

from engine.choice import EngineChoice
from engine.client import Engine
from engine.values import EngineStats, Outcome, Picture, Preview, Progress, QueueState

__all__ = ["Engine", "EngineChoice", "EngineStats", "Outcome", "Picture", "Preview", "Progress", "QueueState"]
