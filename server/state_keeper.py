"""The server's own files in the state directory: the lock that admits one server, and the file with its address. Both are
restored while the server runs, because people empty the directory to start afresh."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from state_files import KeptFile, is_file_or_missing, set_aside

log = logging.getLogger("easel.state")

CHECK_INTERVAL_S = 0.25


class StateKeeper:
    """Holds the lock from its construction to the end of the process. Only for the server's master process. Raises
    filelock.Timeout if another server holds the lock, and OSError if the directory cannot be used."""

    def __init__(self, lock_file: Path) -> None:
        self._lock_file = lock_file
        self._lock, self._inode = self._acquire()
        self._address: KeptFile | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_rival = False

    def start(self, address: KeptFile | None) -> None:
        """Write the address, if there is one, and keep the files from now on. Raises OSError if it cannot be written now;
        it is written as soon as it can be."""
        self._address = address
        thread = threading.Thread(target=self._run, name="state-keeper", daemon=True)
        thread.start()
        self._thread = thread
        if address is not None:
            address.restore()

    def stop(self) -> None:
        """Keep the lock, and no longer restore anything."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)

    def restore(self) -> None:
        """Look once. Raises OSError if the directory cannot be written."""
        if self._inode != _inode(self._lock_file):
            self._lock_again()
        if self._address is not None and not self._has_rival:
            self._address.restore()

    def _lock_again(self) -> None:
        """The file is another one now, so that its lock would admit a second server."""
        try:
            lock, inode = self._acquire()
        except Timeout:
            if not self._has_rival:
                log.error(
                    "%s was deleted, and another Easel has started in the same directory: stop one of them",
                    self._lock_file.name,
                )
            self._has_rival = True
            return
        self._lock.release(force=True)
        self._lock, self._inode, self._has_rival = lock, inode, False

    def _acquire(self) -> tuple[FileLock, int | None]:
        # Not `ensure_folder`: the setting may name somebody's file by mistake.
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        if not is_file_or_missing(self._lock_file):
            set_aside(self._lock_file, IsADirectoryError("not a file"))
        # Not thread-local: it is acquired in one thread and replaced in another.
        lock = FileLock(self._lock_file, thread_local=False)
        lock.acquire(blocking=False)
        return lock, _inode(self._lock_file)

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_INTERVAL_S):
            # The disk may be full, or the directory unwritable, for a while.
            with contextlib.suppress(OSError):
                self.restore()


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None
