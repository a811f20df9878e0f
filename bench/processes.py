"""What the system knows of a process: its children, its CPU time, its memory. Reads /proc; elsewhere it knows nothing."""

from __future__ import annotations

import os
from pathlib import Path

_MB = 1_000_000
Memory = dict[str, float]


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run, oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat and int(stat[1]) == pid:
            found.append(int(entry.name))
    return sorted(found)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has used so far."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") if stat else 0.0


def memory_mib(pid: int) -> Memory | None:
    """RSS (all that it maps and uses) and PSS (what it shares divided by those who share it), in 10^6 bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"rss_mb": kib["Rss"] * 1024 / _MB, "pss_mb": kib["Pss"] * 1024 / _MB}


def reset_peak(pid: int) -> float:
    """Forget the most memory that the process ever had; what it has now, in 10^6 bytes. Raises OSError off Linux."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status_mb(pid, "VmRSS")


def peak_mb(pid: int) -> float:
    """The most memory that the process had since `reset_peak`, in 10^6 bytes."""
    return _status_mb(pid, "VmHWM")


def _status_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith(f"{name}:"))


def cpu_model() -> str:
    """What this machine's CPU calls itself, and how many of it this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown CPU"
    return f"{os.cpu_count()} x {name}"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on (state, parent, …); the second may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
