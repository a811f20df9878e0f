"""A lock that one process at a time holds, and that ends with its process."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from filelock import lock_descriptor

_MIN_PAUSE_S, _MAX_PAUSE_S = 0.0001, 0.001
"""Between two attempts; it is usually held for a fraction of a millisecond"""


class FileMutex:
    """A file that its holder keeps locked. For one thread at a time; the holder may acquire it again, and then releases it
    as often.

    Not filelock's FileLock, which prepares for uses that this lock does not have: every LLM request takes it, and that
    would take longer than everything else that its lease does. Both exclude each other.
    """

    _descriptor: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._depth = 0

    def acquire(self, timeout_s: float) -> None:
        """Raises TimeoutError, and OSError if the file cannot be opened."""
        if self._descriptor is None:
            self._descriptor = self._locked(time.monotonic() + timeout_s)
        self._depth += 1

    def _locked(self, deadline: float) -> int:
        pause_s = _MIN_PAUSE_S
        while (descriptor := self._try_lock()) is None:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{self._path} is locked by another process")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        return descriptor

    def _try_lock(self) -> int | None:
        """The locked file; None if another process holds it, or has removed it meanwhile: then it excludes nobody."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if lock_descriptor(descriptor, blocking=False) and os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self) -> None:
        """End what the last `acquire` began."""
        self._depth -= 1
        if not self._depth and self._descriptor is not None:
            # Closing would not unlock it while a child that was forked meanwhile has not closed it yet.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Close the file. In a forked child: without it, the child would keep the lock of its parent, which this does not
        release."""
        descriptor, self._descriptor, self._depth = self._descriptor, None, 0
        if descriptor is not None:
            os.close(descriptor)
