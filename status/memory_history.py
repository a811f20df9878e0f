"""The memory of the machine over the last minutes: samples in a file that all processes share, so that a worker that has
just started knows them too."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomic_file import write_atomic
from state_files import read_state

KEPT_S = 300.0
INTERVAL_S = 2.0
"""Between two samples"""
_FIELDS = ("vram_used_gb", "vram_ceil_gb", "ram_used_gb", "ram_ceil_gb")
Sample = Mapping[str, Any]
"""`at` (Unix time) and the amounts in 10^9 bytes; None for one that the engine does not report"""


class MemoryHistory:
    """One per process. There are samples only of times at which somebody asked for the status."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int, int], tuple[Sample, ...]] | None = None
        """The file's inode, time and size, and its content"""

    def samples(self) -> tuple[Sample, ...]:
        """Oldest first. Reads the file only if it has changed."""
        try:
            found = self._path.lstat()
        except OSError:
            return ()
        version, known = (found.st_ino, found.st_mtime_ns, found.st_size), self._known
        if known is None or known[0] != version:
            known = self._known = version, tuple(read_state(self._path, _parse) or ())
        return known[1]

    def add(self, memory: Mapping[str, Any] | None, now: float) -> None:
        """Call it after each probe. A full disk only costs samples. `memory`: of the status, None if it is not known."""
        if memory is None:
            return
        # A clock that was set back leaves samples of the future.
        kept = [sample for sample in self.samples() if 0 <= now - sample["at"] <= KEPT_S]
        if kept and now - kept[-1]["at"] < INTERVAL_S:
            return
        kept.append({"at": round(now, 2), **{name: memory[name] for name in _FIELDS}})
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(kept).encode())


def _parse(document: Any) -> list[Sample]:
    """Raises TypeError or KeyError if the document is not what `add` writes."""
    for sample in document:
        if not isinstance(sample["at"], int | float) or sample.keys() != {"at", *_FIELDS}:
            raise TypeError("not a list of samples")
        if not all(sample[name] is None or isinstance(sample[name], int | float) for name in _FIELDS):
            raise TypeError("not an amount")
    return list(document)
