"""Reads and repairs what lies in the state directory. A file that is damaged or of the wrong type or shape is moved aside,
for diagnosis, and counts as missing; nothing in that directory can stop a server for longer than that takes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from atomic_file import write_atomic

T = TypeVar("T")

log = logging.getLogger("easel.state")

_MAX_KEPT = 5
"""Of one name; older ones are removed, so that a program that damages a file again and again does not fill the disk"""


def read_state(path: Path, parse: Callable[[Any], T]) -> T | None:
    """What `parse` makes of the JSON in `path`; None if there is no file, if it cannot be read, or if it is damaged.

    `parse` raises any Exception for a value of the wrong shape.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        set_aside(path, error)
        return None
    except OSError as error:
        _log_unreadable(path, error)
        return None
    try:
        return parse(json.loads(content))
    except MemoryError:
        return None  # nothing is wrong with the file
    except Exception as error:
        set_aside(path, error)
        return None


_logged_at: dict[Path, float] = {}
_LOG_INTERVAL_S = 60.0


def _log_unreadable(path: Path, error: OSError) -> None:
    """Some files are read a hundred times a second."""
    now = time.monotonic()
    if now - _logged_at.get(path, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S:
        _logged_at[path] = now
        log.error("%s cannot be read: %s", path.name, error.strerror)


def read_file(path: Path) -> bytes:
    """The content of a regular file. Raises OSError; IsADirectoryError for everything that is not a file."""
    # O_NONBLOCK, because opening a pipe would block the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(f"{path.name} is not a file")
        return file.read()


def is_file_or_missing(path: Path) -> bool:
    """Whether `path` is a regular file or nothing, so that opening it neither fails nor blocks."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return True


class KeptFile:
    """A file of this content that other processes read. `restore` writes it again after it was deleted, damaged or
    replaced. Threads and processes that keep the same content may call it at the same time."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content = path, content
        self._intact: tuple[int, int, int] | None = None
        """How the file looked when its content was compared last and was right"""

    def is_intact(self) -> bool:
        """Whether the file has the content. It is read only if it has changed since the last call."""
        version = _version(self._path)
        if version is None or version == self._intact:
            return version is not None
        try:
            is_same = read_file(self._path) == self._content
        except OSError:
            return False
        self._intact = version if is_same else None
        return is_same

    def restore(self) -> bool:
        """Write the file unless it is intact; true if it was written. What lies there and is no file is moved aside, but
        not a file in place of its folder: a setting may name it by mistake. Raises OSError."""
        if self.is_intact():
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not is_file_or_missing(self._path):
            set_aside(self._path, IsADirectoryError("not a file"))
        write_atomic(self._path, self._content)
        return True

    def remove(self) -> None:
        """Delete the file, if there is one. Never raises."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def _version(path: Path) -> tuple[int, int, int] | None:
    """Equal versions mean equal content. None if there is no regular file."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None


def ensure_folder(path: Path, mode: int = 0o777) -> None:
    """Create the folder and its parents. A file with its name is moved aside. Raises OSError."""
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        if not _exists_but_is_no_folder(path):
            raise
        set_aside(path, error)
        path.mkdir(mode, parents=True, exist_ok=True)


def set_aside(path: Path, why: BaseException) -> Path | None:
    """Rename a file or folder to `NAME.TIME.corrupt`; the new path, or None if that failed (another process was quicker,
    or the disk is read-only)."""
    target = path.with_name(f"{path.name}.{time.time_ns() // 1_000_000}.corrupt")
    try:
        os.replace(path, target)
    except OSError:
        return None
    reason = str(why).partition("\n")[0][:200] or type(why).__name__
    log.error("%s could not be used (%s); it was moved to %s", path.name, reason, target.name)
    for old in sorted(path.parent.glob(f"{path.name}.*.corrupt"))[:-_MAX_KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return target


def _exists_but_is_no_folder(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False
