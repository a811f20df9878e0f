"""Child processes, CPU time and memory of a process, read from /proc. Empty or zero on systems without /proc."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_MB = 1_000_000
_LISTENING = "0A"
_SAMPLE_INTERVAL_S = 0.01
Memory = dict[str, float]


def child_pids(pid: int) -> list[int]:
    """The running processes that `pid` started, in ascending order."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat and int(stat[1]) == pid:
            pids.append(int(entry.name))
    return sorted(pids)


def listening_pid(port: int) -> int | None:
    """The process that listens on this TCP port of this machine; None if it is not known, as for other users' processes."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if inodes and os.readlink(entry) in inodes:
                return int(entry.parts[2])
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    """From the kernel's tables of TCP sockets: the fields are number, local address, remote address, state, …, inode."""
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def cpu_s(pid: int) -> float:
    """Seconds of CPU time that the process has used so far."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") if stat else 0.0


def machine_cpu_s() -> tuple[float, float]:
    """The seconds in which the CPUs of the machine worked, and those that there were, of all CPUs together; both 0 without
    /proc."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / ticks, sum(fields) / ticks


def memory_mb(pid: int) -> Memory | None:
    """RSS (all memory that it maps and uses) and PSS (shared memory divided by its number of users), in 10^6 bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"rss_mb": kib["Rss"] * 1024 / _MB, "pss_mb": kib["Pss"] * 1024 / _MB}


def reset_peak_memory(pid: int) -> float:
    """Reset the peak memory of the process. Returns its present memory, in 10^6 bytes. Raises OSError off Linux."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status_mb(pid, "VmRSS")


def peak_memory_mb(pid: int) -> float:
    """The peak memory of the process since `reset_peak_memory`, in 10^6 bytes."""
    return _status_mb(pid, "VmHWM")


class MemoryWatch:
    """Watches the memory of some processes inside its block. Of the memory that a process maps, only the anonymous part is
    looked at all the time, without the pages of files, which the kernel takes back when it needs memory."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids if sys.platform == "linux" else ()

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._before = {pid: reset_peak_memory(pid) for pid in self._pids}
        self._anonymous = {pid: _status_mb(pid, "RssAnon") for pid in self._pids}
        self._most = dict(self._anonymous)
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._after = {pid: _status_mb(pid, "VmRSS") for pid in self._pids}
        self._peak = {pid: peak_memory_mb(pid) for pid in self._pids}

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_INTERVAL_S):
            for pid in self._pids:
                self._most[pid] = max(self._most[pid], _status_mb(pid, "RssAnon"))

    def grown_mb(self) -> dict[str, float]:
        """By how much that process grew that grew most: its RSS in the end and at most, and its anonymous memory at most.
        Empty without processes, and off Linux."""
        if not self._pids:
            return {}
        return {
            "grown_mb": max(self._after[pid] - self._before[pid] for pid in self._pids),
            "peak_mb": max(self._peak[pid] - self._before[pid] for pid in self._pids),
            "anonymous_mb": max(self._most[pid] - self._anonymous[pid] for pid in self._pids),
        }


def _status_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith(f"{name}:"))


def cpu_model() -> str:
    """The number of CPUs of this machine and their model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown CPU"
    return f"{os.cpu_count()} x {name}"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on (state, parent, …); the second may contain spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
