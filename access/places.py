"""The places for the requests of a key that run or wait at the same time, in all workers together. Each is a file that its
worker keeps locked, so that the place of a killed worker is free at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from state_files import ensure_folder


class Place:
    """A place that is taken until `leave`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def leave(self) -> None:
        """A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Closing would not unlock it while a child that was forked meanwhile has not closed it yet.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


class Places:
    """The places in `folder`. Safe for threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, key_id: str, limit: int) -> Place | None:
        """One of `limit` places, None if all are taken. Raises OSError."""
        # After the limit was lowered, requests may still be in places that it no longer has.
        free = limit - self._taken_beyond(key_id, limit)
        for number in range(limit):
            if free <= 0:
                return None
            descriptor = self._open(f"{self._folder}/{key_id}.{number}")
            if _try_lock(descriptor):
                return Place(descriptor)
            os.close(descriptor)
            free -= 1
        return None

    def _taken_beyond(self, key_id: str, limit: int) -> int:
        """How many places are taken that are more than `limit`. Of those within it nobody can say without taking them."""
        count, number = 0, limit
        with contextlib.suppress(OSError):
            while True:  # the files of a key have no gaps
                descriptor = os.open(f"{self._folder}/{key_id}.{number}", os.O_RDWR | os.O_CLOEXEC)
                try:
                    count += not _try_lock(descriptor)
                finally:
                    os.close(descriptor)
                number += 1
        return count

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            ensure_folder(self._folder, 0o700)
            return os.open(path, flags, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
