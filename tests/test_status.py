"""How the status reports the memory that an engine reports."""

from __future__ import annotations

from typing import Any

from status.system_status import _memory

STATS: dict[str, Any] = {
    "device": "cuda:0", "tells_gpu_memory": True, "vram_total": 24_000_000_000, "vram_free": 20_000_000_000,
    "torch_vram_free": 3_000_000_000, "ram_total": 64_000_000_000, "ram_free": 60_000_000_000,
}  # fmt: skip


def test_memory_that_comfyuis_allocator_keeps_counts_as_used() -> None:
    """ComfyUI reports it as free, the driver's own tool does not; no other process can use it."""
    memory = _memory(STATS)
    assert memory is not None
    assert (memory["vram_used_gb"], memory["vram_ceil_gb"], memory["pressure"]) == (7.0, 24.0, False)


def test_unknown_gpu_memory_is_reported_as_none() -> None:
    memory = _memory({**STATS, "tells_gpu_memory": False})
    assert memory is not None
    assert (memory["vram_used_gb"], memory["vram_used_share"], memory["pressure"]) == (None, None, None)
    assert memory["ram_used_gb"] == 4.0
