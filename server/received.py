"""What was received of a request before a thread handles it: in memory, or in a file if it is large."""

from __future__ import annotations

import contextlib
from tempfile import TemporaryFile
from typing import IO

MAX_IN_MEMORY_BYTES = 128 * 1024
READ_BYTES = 64 * 1024
"""What werkzeug reads at a time: with more, gunicorn's reader would copy the surplus at each read"""


class ReceivedBytes:
    """Bytes in the order of their arrival. What exceeds MAX_IN_MEMORY_BYTES lies in a file without a name, in the first of
    `folders` that can be written (None: the system's folder for temporary files), and vanishes with the process."""

    def __init__(self, folders: tuple[str | None, ...] = (None,)) -> None:
        self.memory = bytearray()
        self.size = 0
        self._folders = folders
        self._file: IO[bytes] | None = None
        self._rest = b""
        """What did not fit on the disk"""
        self._is_reading = False

    def write(self, data: bytes | memoryview, *, in_memory: bool = False) -> None:
        """Append `data`; `in_memory`: to `memory` however large it is. Raises OSError if it could not be stored on
        disk; it is kept in memory then, and nothing more may be written."""
        self.size += len(data)
        if in_memory or (self._file is None and len(self.memory) + len(data) <= MAX_IN_MEMORY_BYTES):
            self.memory += data
            return
        view = memoryview(data)
        try:
            file = self._file = self._file or self._open()
            while view:
                view = view[file.write(view) :]
        except OSError:
            self._rest = bytes(view)
            raise

    def _open(self) -> IO[bytes]:
        for folder in self._folders[:-1]:
            with contextlib.suppress(OSError):
                return TemporaryFile(dir=folder, buffering=0)
        return TemporaryFile(dir=self._folders[-1], buffering=0)

    def read(self) -> bytes:
        """The next bytes; empty at the end. Call it only after the last `write`."""
        if not self._is_reading:
            self._is_reading = True
            if self._file is not None:
                self._file.seek(0)
        if self.memory:
            data, self.memory = bytes(self.memory), bytearray()
            return data
        if self._file is not None:
            if part := self._file.read(READ_BYTES):
                return part
            self.close()
        data, self._rest = self._rest, b""
        return data

    def close(self) -> None:
        """Free the disk space."""
        if self._file is not None:
            self._file.close()
            self._file = None
