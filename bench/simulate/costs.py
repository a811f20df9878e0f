"""What things cost on a GPU, and where each figure is from. Seconds; bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured on an H200 (docs/decisions/0006): a switchover takes 0.24 s, and the picture comes 1.2 s after the request,
    so a render takes about 1.0 s. **Not measured**: how long a load takes. It is the size of the model's files at a rate
    that is assumed, 2 GB/s; the benchmark of the same machine has no real weights."""

    switch_s: float = 0.24
    render_s: float = 1.0
    read_bytes_per_s: float = 2e9
    memory_bytes: int = 24 * 10**9
    linger_s: float = 5.0
    """So long after its last job an engine that shares its GPU with LLMs gives it back (`gpu.linger_s`), models and all"""
    is_shared: bool = False
    """Whether LLMs share every GPU"""

    def load_s(self, size_bytes: int) -> float:
        return size_bytes / self.read_bytes_per_s
