"""The built-in engine: a server that speaks ComfyUI's protocol and draws pencil sketches, for machines without a GPU.
It runs in a child process; importing this package loads only the classes that start and stop that process."""

from sketch.process import SketchProcess
from sketch.shared_files import SharedFiles
from sketch.supervisor import SketchSupervisor

__all__ = [
    "SharedFiles",
    "SketchProcess",
    "SketchSupervisor",
]
