"""What the engine room hands out: pictures, the progress of a job, and the state of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """The bytes of one picture as the engine made them, and the node that delivered it."""

    data: bytes
    node: str
    mime: str


@dataclass(frozen=True)
class Progress:
    """Step `value` of `maximum` is done in `node`."""

    prompt_id: str
    node: str | None
    value: int
    maximum: int


@dataclass(frozen=True)
class Preview:
    """A small, rough look (mostly JPEG) at what `node` is drawing."""

    prompt_id: str
    node: str | None
    mime: str
    data: bytes


@dataclass(frozen=True)
class Outcome:
    """A job that succeeded. Pictures are in the order of the graph's nodes, then of the batch.

    Seconds: waiting in the engine's queue, running, and fetching the pictures.
    """

    prompt_id: str
    pictures: tuple[Picture, ...]
    cached_nodes: tuple[str, ...]
    queued_s: float
    run_s: float
    fetch_s: float


@dataclass(frozen=True)
class EngineStats:
    """What `/system_stats` says. Memory in bytes; None where the engine does not tell."""

    version: str
    is_sketch: bool
    device: str | None
    device_type: str | None
    vram_total: int | None
    vram_free: int | None
    ram_total: int | None
    ram_free: int | None
    torch_vram_total: int | None = None
    """Of the memory of the GPU, what ComfyUI's own allocator has reserved, and the part of that which is not in use"""
    torch_vram_free: int | None = None

    @property
    def tells_gpu_memory(self) -> bool:
        """Whether its figures are the whole device's: `--cpu` shows the machine's memory, and XPU only ComfyUI's own."""
        return self.device_type == "cuda" and None not in (
            self.vram_free,
            self.torch_vram_total,
            self.torch_vram_free,
        )

    @property
    def room_bytes(self) -> int | None:
        """What ComfyUI could have if nobody else left: free memory, and all that it holds itself."""
        if not self.tells_gpu_memory:
            return None
        # ComfyUI counts what its allocator has reserved and not in use as free.
        return (self.vram_free or 0) - (self.torch_vram_free or 0) + (self.torch_vram_total or 0)


@dataclass(frozen=True)
class QueueState:
    """Prompt ids in the engine: running now, and pending in the order they will run."""

    running: tuple[str, ...]
    pending: tuple[str, ...]
