"""Temporary folders that are removed even if their process is killed: then by the next process that creates one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType

_LOCK = ".in-use"
_MIN_AGE_S = 5.0


class ScratchFolder:
    """A new folder in `parent` (None: the system's folder for temporary files), whose name begins with `prefix`:
    `with ScratchFolder("easel-bench-") as folder:` or `remove()`. Creating one removes those with the same prefix whose
    process has died. A forked child must not remove it: it calls `disown`. Raises OSError."""

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        _remove_abandoned(parent, prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # The lock, which the kernel releases when the process dies, says that the folder is in use.
        self._lock: int | None = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder with its content. Never raises."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.disown()

    def disown(self) -> None:
        """Leave the folder to the parent process."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """A folder without a lock file is somebody else's, or is just being created."""
    for lock_file in parent.glob(f"{prefix}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock_file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the creation of a lock file and its lock nobody holds it.
            if time.time() - lock_file.stat().st_mtime > _MIN_AGE_S:
                shutil.rmtree(lock_file.parent, ignore_errors=True)
