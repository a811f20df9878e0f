"""The last switchovers, from the event log: why each was made, for whom, and what it cost. Only what was added to the log
since the last look is read."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arbiter.event_log import before

KEPT = 20
_MAX_TAIL_BYTES = 1_000_000
"""What is read of a log that this process has not read yet"""
_MAX_JOBS = 2000
"""Jobs whose key is remembered"""


@dataclass(frozen=True)
class PastSwitch:
    """`at`: Unix time of its end. `source`, `target`: modes. `key`: of a request that waited for it, or "".
    `error`: `code` and `message`, None if it succeeded."""

    number: int
    at: float
    source: str
    target: str
    reason: str
    key: str
    seconds: float
    phases: tuple[tuple[str, float], ...]
    error: dict[str, str] | None


class SwitchHistory:
    """Thread-safe. Lines that are damaged are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._inode = self._offset = -1
        self._began: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._keys: OrderedDict[str, str] = OrderedDict()
        """job -> the key of its request"""
        self._ended: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def latest(self) -> tuple[PastSwitch, ...]:
        """The last switches, newest first."""
        with self._lock:
            with contextlib.suppress(OSError):  # the log is off, or was removed
                self._read_new()
            return tuple(filter(None, (self._switch(line) for line in reversed(self._ended))))

    def _read_new(self) -> None:
        found = _stat(self._path)
        if self._inode != -1 and (found is None or found.st_ino != self._inode):
            self._read_rest(before(self._path))
        if found is None:
            return
        if found.st_ino != self._inode or found.st_size < self._offset:
            if self._inode == -1:
                self._read_whole(before(self._path))
            self._inode, self._offset = found.st_ino, max(0, found.st_size - _MAX_TAIL_BYTES)
        if found.st_size > self._offset:
            self._offset += self._read(self._path, self._offset)

    def _read_rest(self, path: Path) -> None:
        """What was written to the log between the last look and its rotation."""
        found = _stat(path)
        if found is not None and found.st_ino == self._inode and found.st_size > self._offset:
            self._offset += self._read(path, self._offset)

    def _read_whole(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # there was none before
            self._read(path, max(0, path.stat().st_size - _MAX_TAIL_BYTES))

    def _read(self, path: Path, offset: int) -> int:
        """Returns the bytes of the complete lines that were read."""
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(2 * _MAX_TAIL_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.split(b"\n"):
            if b'"switch_' in line or b'"lease"' in line:
                self._take(line)
        return len(whole)

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            event = line["event"]
            if event == "switch_began":
                self._began[int(line["number"])] = line
                _shorten(self._began, KEPT * 2)
            elif event == "switch_ended":
                self._ended.append(line)
            elif event == "lease" and line["key"]:
                self._keys[str(line["job"])] = str(line["key"])
                _shorten(self._keys, _MAX_JOBS)
        except (KeyError, TypeError, ValueError, RecursionError):
            return

    def _switch(self, line: dict[str, Any]) -> PastSwitch | None:
        try:
            target, number = str(line["target"]), int(line["number"])
            began = self._began.get(number, {})
            waiting = [str(job) for job in began.get("waiting", ())]
            error = line["error"]
            return PastSwitch(
                number,
                float(line["at"]),
                "inference" if target == "generation" else "generation",
                target,
                str(began.get("reason", "")),
                next((self._keys[job] for job in waiting if job in self._keys), ""),
                float(line["took_s"]),
                tuple((str(name), float(seconds)) for name, seconds in line["phases"]),
                {"code": str(error["code"]), "message": str(error["message"])} if error else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _stat(path: Path) -> os.stat_result | None:
    """None if there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def _shorten(entries: OrderedDict[Any, Any], length: int) -> None:
    while len(entries) > length:
        entries.popitem(last=False)
