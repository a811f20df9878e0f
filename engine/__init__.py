"""Speaks ComfyUI's HTTP and WebSocket: runs jobs, detects how they end, and chooses among engines."""

from engine.client import Engine, upload_name
from engine.credentials import NO_CREDENTIALS, Credentials
from engine.gpu_tenant import EngineTenant
from engine.process import EngineProcess
from engine.selection import EngineSelector
from engine.values import EngineStats, Outcome, Picture, Preview, Progress, ProgressCallback, QueueState
from engine.workflow_folder import workflow_file_name

__all__ = [
    "NO_CREDENTIALS",
    "Credentials",
    "Engine",
    "EngineProcess",
    "EngineSelector",
    "EngineStats",
    "EngineTenant",
    "Outcome",
    "Picture",
    "Preview",
    "Progress",
    "ProgressCallback",
    "QueueState",
    "upload_name",
    "workflow_file_name",
]
