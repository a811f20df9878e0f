"""The event log: each decision about the GPU as one line of JSON, for people and for `replay.py`. Several processes write
into one file; nothing depends on it, so an error only costs lines.

No line waits for a lock, which the audit log takes for each entry: a process that was stopped must not delay the leases of
others. Only the rotation takes one. So a process knows only of lines that it cut off itself: the last line of the file may
be one that another process is writing.

Events, each with `at` (Unix time): `policy` (its values, when a leader begins), `lease` (a request that got the GPU: when
it asked, how long it waited and ran), `gave_up` (one that did not, and why), `requested` and `pin` (of the owner),
`switch_began` (why, and which jobs waited) and `switch_ended` (what its phases cost)."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arbiter.file_mutex import FileMutex
from state_files import ensure_folder

log = logging.getLogger("easel.gpu")

_MUTEX_TIMEOUT_S = 0.5
_MAX_LINE = 1_000_000


class EventLog:
    """Keeps the file and the one before it, each up to half of `max_bytes`; 0: none. Safe for threads and processes."""

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.path, self._max_bytes, self._clock = path, max_bytes, clock
        self._has_failed = False
        self._is_cut = False
        """Whether a full disk has left a part of a line at the end"""

    def write(self, event: str, **values: Any) -> None:
        """Add one line. Does nothing if it cannot be written, and says so once."""
        if not self._max_bytes:
            return
        line = json.dumps({"at": round(self._clock(), 4), "event": event, **values}).encode() + b"\n"
        try:
            try:
                size = self._append(line)
            except (FileNotFoundError, NotADirectoryError):
                ensure_folder(self.path.parent)
                size = self._append(line)
            if size > self._max_bytes // 2:
                self._rotate()
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                log.warning("cannot write %s: %s", self.path.name, error.strerror or error)
            self._has_failed = True

    def _append(self, line: bytes) -> int:
        """Returns the size of the file after it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o600)
        try:
            # One call, so that lines of several processes do not mix.
            content = b"\n" + line if self._is_cut else line
            written = os.write(descriptor, content)
            if written < len(content):
                self._is_cut = self._is_cut or written > 0
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._is_cut = False
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        mutex = FileMutex(self.path.with_suffix(".lock"))
        with contextlib.suppress(TimeoutError):
            mutex.acquire(_MUTEX_TIMEOUT_S)
            try:
                # Another process may have done it meanwhile.
                if self.path.stat().st_size > self._max_bytes // 2:
                    os.replace(self.path, before(self.path))
            finally:
                mutex.release()
        mutex.close()


NO_EVENTS = EventLog(Path(os.devnull), 0)


def before(path: Path) -> Path:
    """The file with the lines before those in `path`."""
    return path.with_suffix(f".1{path.suffix}")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a log, and before them those of the file before it. A line that is too long for one comes in parts.
    Raises OSError if there is no file `path`."""
    with contextlib.suppress(FileNotFoundError):
        yield from _lines(before(path))
    yield from _lines(path)


def line_name(path: Path, number: int) -> str:
    """File and line of one of `read_lines`, by its number from 1. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        earlier = sum(1 for _ in _lines(before(path)))
        if number <= earlier:
            return f"{before(path).name}:{number}"
        number -= earlier
    return f"{path.name}:{number}"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from iter(lambda: file.readline(_MAX_LINE), "")
