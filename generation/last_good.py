"""The last good catalogue that was stored: one file in the state directory, shared by all processes of a server.

A process serves only a catalogue that it has stored, and stores one only while the files still are what it read. So the
stored catalogue is never older than one that a process serves, and after an invalid edit all processes can load it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atomic_file import write_atomic
from compiler import SourcePaths, Sources
from state_files import read_state

Version = tuple[int, int]
"""Inode and modification time of the file: equal versions mean equal content."""

LOCK_TIMEOUT_S = 1.0
"""The lock is held only while the file is read or written, which takes milliseconds."""


class LastGoodFile:
    """Reads and writes the file. `path` is the file; `sources` are the files that the catalogue is read from: a
    catalogue from other files, stored by a command with other settings, is ignored."""

    def __init__(self, path: Path, sources: SourcePaths) -> None:
        self._path = path
        folders = (sources.catalogue, sources.templates, sources.schemas, sources.own_folder)
        self._origin = [str(folder) for folder in folders]

    def version(self) -> Version | None:
        """None while there is no file."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def read(self) -> Sources | None:
        """The stored sources; None if there are none, or if they cannot be read."""
        return read_state(self._path, self._parse)

    def _parse(self, document: Any) -> Sources | None:
        """None for sources of other files or of another version of Easel. Raises any Exception for other documents."""
        if document["origin"] != self._origin:
            return None
        try:
            return Sources.load(json.dumps(document["sources"]))
        except TypeError:
            return None

    def store(self, sources: Sources, is_current: Callable[[], bool]) -> bool:
        """Store `sources`; False if `is_current` says that the files have changed since they were read, or if another
        process holds the lock for too long. The caller then must not serve them.

        If the state directory is not writable, True: a process then only has its own catalogue.
        """
        try:
            with self._locked():
                if not is_current():
                    return False
                if self.read() != sources:
                    self._write(sources)
                return True
        except Timeout:
            return False
        except OSError:
            return True

    def read_or_restore(
        self, own: Sources, rejected: Sources | None = None
    ) -> tuple[Sources, Version | None]:
        """The stored sources and the version of the file. If there are none any more, or if they are `rejected`, `own`
        is stored for the other processes. (own, None) if the file cannot be locked or written."""
        with contextlib.suppress(Timeout, OSError), self._locked():
            stored = self.read()
            if stored is None or stored == rejected:
                stored = own
                self._write(own)
            return stored, self.version()
        return own, None

    def _write(self, sources: Sources) -> None:
        document = {"origin": self._origin, "sources": json.loads(sources.dump())}
        write_atomic(self._path, json.dumps(document).encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f"{self._path.name}.lock"), timeout=LOCK_TIMEOUT_S):
            yield
