"""A GPU that does not exist, for demonstrations: how much memory it has, and how much other programs hold, are in a file.

What the engine holds it says as ComfyUI does: the memory of its model from its first job until it is asked to free it.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class OutOfMemoryError(RuntimeError):
    """As PyTorch's"""


class SimulatedGpu:
    """`path`: a JSON file, read again each time, with `total`, `others` (what other programs hold) and `model` (what the
    engine's model takes), in bytes. Safe for threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held = 0

    def load(self) -> None:
        """Load the model, if it is not loaded. Raises OutOfMemoryError if it does not fit beside what others hold."""
        figures = self._figures()
        with self._lock:
            if figures["others"] + figures["model"] > figures["total"]:
                needed, free = figures["model"] / 1e9, (figures["total"] - figures["others"]) / 1e9
                raise OutOfMemoryError(f"Allocation on device: {needed:.1f} GB needed, {free:.1f} GB free")
            self._held = figures["model"]

    def free(self) -> None:
        """Unload the model."""
        with self._lock:
            self._held = 0

    def device(self) -> dict[str, Any]:
        """The entry of `/system_stats`."""
        figures = self._figures()
        with self._lock:
            held = self._held
        return {
            "name": "simulated GPU",
            "type": "cuda",
            "index": 0,
            "vram_total": figures["total"],
            "vram_free": max(0, figures["total"] - figures["others"] - held),
            "torch_vram_total": held,
            "torch_vram_free": 0,
        }

    def _figures(self) -> dict[str, int]:
        figures: dict[str, int] = json.loads(self._path.read_text("utf-8"))
        return figures
