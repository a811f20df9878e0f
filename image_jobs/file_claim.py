"""An exclusive claim on a file. One thread of one process has it; when that process ends, however it ends, it is free."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


class FileClaim:
    """Created by `take`. The claim belongs to the file, also after it is renamed; it ends with `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path, *, create: bool = False) -> FileClaim | None:
        """Claim the file; None if another has it, or if there is none and it is not to be created. Raises OSError."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        while True:
            try:
                descriptor = os.open(path, flags, 0o600)
            except FileNotFoundError:
                if create:
                    raise
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_same = _is_at(descriptor, path)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            if is_same:
                return cls(path, descriptor)
            # Between `open` and `flock` its owner removed or renamed it.
            os.close(descriptor)
            if not create:
                return None

    def rename(self, path: Path) -> None:
        """The claim is kept. Raises OSError."""
        os.replace(self.path, path)
        self.path = path

    def release(self, *, remove: bool = False) -> None:
        """End the claim; a second call does nothing. `remove`: delete the file. Never raises."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if remove:
            # While it is locked: whoever opened it before finds that it is not there any more.
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(descriptor)


def is_claimed(path: Path) -> bool:
    """Whether anybody has claimed the file now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
