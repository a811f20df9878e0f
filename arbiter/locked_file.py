"""A file that its process keeps locked: when the process ends, however it ends, the file is unlocked at once."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref

from filelock import lock_descriptor


class LockedFile:
    """Created and locked under a hidden name before it gets its own: no process ever sees it unlocked.

    In a forked child it is neither locked nor removed. One that is lost without `remove` is unlocked, so that its file is
    cleaned up like that of a dead process.

    Not filelock's FileLock, which prepares for uses that this file does not have: nobody waits for its lock. It would take
    longer than everything else that a lease does.
    """

    _descriptor: int | None = None

    def __init__(self, folder: str, name: str, content: bytes = b"", *, mode: int = 0o644) -> None:
        """Raises OSError; nothing is left then."""
        self._folder, self._name = folder, name
        temporary = f"{folder}/.{name}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
        try:
            if not lock_descriptor(descriptor, blocking=False):
                raise BlockingIOError(errno.EAGAIN, "the file is locked by another process", temporary)
            if content and os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
            os.rename(temporary, f"{folder}/{name}")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)

    def rename(self, name: str) -> None:
        """The lock belongs to the file, so it is held throughout. Raises OSError."""
        os.rename(f"{self._folder}/{self._name}", f"{self._folder}/{name}")
        self._name = name

    def remove(self) -> None:
        """Remove the file and unlock it; a second call does nothing."""
        if self._descriptor is not None:
            # The name first: unlocked under its name, the file would look like that of a dead process.
            with contextlib.suppress(OSError):
                os.unlink(f"{self._folder}/{self._name}")
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    __del__ = _close


_held: weakref.WeakSet[LockedFile] = weakref.WeakSet()


def _close_all() -> None:
    """In a forked child, which would keep the files of its parent locked."""
    for file in list(_held):
        file._close()


os.register_at_fork(after_in_child=_close_all)
