"""The time by which use is counted."""

from __future__ import annotations

import contextlib
import time
import uuid
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Now:
    """`steady`: seconds that nobody can set back, the same in all processes, comparable while `boot` is the same. `wall`:
    Unix seconds."""

    wall: float
    steady: float
    boot: int


def read_clock() -> Now:
    """The present time."""
    boot = _boot()
    if boot == 0:
        return Now(time.time(), time.time(), 0)
    return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)


@cache
def _boot() -> int:
    """A number of the machine's present boot; 0 where there is none: then only the wall clock counts."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0
    with contextlib.suppress(OSError, ValueError):
        return zlib.crc32(uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes) or 1
    return 0
