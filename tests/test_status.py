"""What the status page makes of an engine's own figures."""

from __future__ import annotations

from typing import Any

import pytest

from status import _memory

STATS: dict[str, Any] = {
    "device": "cuda:0", "tells_gpu_memory": True, "vram_total": 24_000_000_000, "vram_free": 20_000_000_000,
    "torch_vram_free": 3_000_000_000, "ram_total": 64_000_000_000, "ram_free": 60_000_000_000,
}  # fmt: skip


def test_memory_that_comfyui_keeps_for_itself_counts_as_used() -> None:
    """ComfyUI says it is free, and the driver's own tool that it is not; nobody else can have it."""
    memory = _memory(STATS)
    assert memory is not None
    assert (memory["vram_used_gb"], memory["vram_ceil_gb"], memory["pressure"]) == (7.0, 24.0, False)


@pytest.mark.parametrize("stats", [{**STATS, "tells_gpu_memory": False}])
def test_an_engine_that_cannot_tell_has_no_figures_made_up(stats: dict[str, Any]) -> None:
    memory = _memory(stats)
    assert memory is not None
    assert (memory["vram_used_gb"], memory["vram_used_share"], memory["pressure"]) == (None, None, None)
    assert memory["ram_used_gb"] == 4.0
