"""The built-in engine: a server that speaks ComfyUI's protocol and draws pencil sketches, for machines without a GPU.
What happens in the child process is in the other modules; whoever imports the package gets only the handles to it."""

from sketch.process import SketchProcess
from sketch.supervisor import SketchSupervisor

__all__ = [
    "SketchProcess",
    "SketchSupervisor",
]
