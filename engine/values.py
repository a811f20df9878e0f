"""The values that this package returns: pictures, the progress of a job, and the state of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """The encoded bytes of one picture as the engine made them, and the node that produced it."""

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
    """A small, rough picture (mostly JPEG) of what `node` is drawing."""

    prompt_id: str
    node: str | None
    mime: str
    data: bytes


ProgressCallback = Callable[[Progress | Preview], None]


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
    """The content of `/system_stats`. Memory is in bytes; None if the engine does not report it."""

    version: str
    is_sketch: bool
    device: str | None
    device_type: str | None
    vram_total: int | None
    vram_free: int | None
    ram_total: int | None
    ram_free: int | None
    torch_vram_total: int | None = None
    """GPU memory that ComfyUI's own allocator has reserved"""
    torch_vram_free: int | None = None
    """The part of `torch_vram_total` that is not in use"""

    @property
    def has_gpu(self) -> bool:
        """Whether the memory is that of a GPU: with `--cpu` it is the machine's."""
        return self.device_type not in (None, "cpu") and not self.is_sketch

    @property
    def reports_gpu_memory(self) -> bool:
        """Whether the memory figures are those of the whole GPU: with `--cpu` they are the machine's memory, and on XPU
        only ComfyUI's own."""
        return self.device_type == "cuda" and None not in (
            self.vram_free,
            self.torch_vram_total,
            self.torch_vram_free,
        )

    @property
    def device_free_bytes(self) -> int | None:
        """What the driver reports as free, for all programs together. The only figure that proves anything: with
        DynamicVRAM (newer ComfyUIs on NVIDIA) the weights are outside PyTorch's pool."""
        if not self.reports_gpu_memory:
            return None
        # ComfyUI adds what its allocator has reserved and does not use.
        return (self.vram_free or 0) - (self.torch_vram_free or 0)

    @property
    def available_bytes(self) -> int | None:
        """GPU memory that ComfyUI could use now: what is free, and what its allocator holds. With DynamicVRAM it may be
        able to use more."""
        free = self.device_free_bytes
        return None if free is None else free + (self.torch_vram_total or 0)


@dataclass(frozen=True)
class QueueState:
    """Prompt ids in the engine: running now, and pending in the order they will run."""

    running: tuple[str, ...]
    pending: tuple[str, ...]
