"""The list of engines that was accepted last: one file in the state directory, shared by all processes of a server or of an
`easel worker`, so that a process that starts after a refused edit uses the same engines as the others.

A process uses a list only after it has stored it, and stores it only while easel.yaml still is what it read. The file holds
what easel.yaml says, which names the variables with credentials and not their values. It is valid for one run of the server.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atomic_file import write_atomic
from engines.entries import SETTING, EngineEntry, read_engines
from schemas import read_yaml
from state_files import is_file_or_missing, read_state, set_aside

_LOCK_TIMEOUT_S = 1.0
"""The lock is held only while the file is read or written, which takes milliseconds"""

_Version = tuple[int, int]
"""The file's inode and time in ns"""


class LastGoodEngines:
    """The file, as one process knows it. For one thread at a time. `environment`: where credentials come from."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path, self._environment = path, environment
        self._known: tuple[_Version | None, bytes] | None = None
        """What this process has stored or read last"""

    def clear(self) -> None:
        """Forget what an earlier run accepted. For the main process, before the others start. Raises OSError."""
        if not is_file_or_missing(self._path):
            set_aside(self._path, IsADirectoryError("not a file"))
        self._path.unlink(missing_ok=True)

    def store(self, text: str, is_current: Callable[[], bool]) -> bool:
        """Store the valid `engines` of `text`, the content of easel.yaml; False if `is_current` says that it has changed
        since it was read, or if another process holds the lock for too long. The caller then must not use them.

        If the state directory is not writable, True: a process then only knows what it accepted itself.
        """
        content = _content({SETTING: read_yaml(text)[SETTING]})
        try:
            with self._locked():
                if not is_current():
                    return False
                self._write(content)
        except Timeout:
            return False
        except OSError:
            pass
        return True

    def changed(self) -> tuple[EngineEntry, ...] | None:
        """What another process has stored since this one stored or read the file last; None if nothing. A file that is gone
        is written again, if this process knows what was in it."""
        version = self._version()
        if version is None:
            self._restore()
            return None
        if self._known is not None and self._known[0] == version:
            return None
        found = read_state(self._path, self._parse)
        if found is None:
            return None
        content, entries = found
        self._known = version, content
        return entries

    def _parse(self, document: Any) -> tuple[bytes, tuple[EngineEntry, ...]]:
        """Raises any Exception for another document."""
        entries = read_engines(document[SETTING], self._environment)
        if not entries:
            raise ValueError("no engines")
        return _content(document), entries

    def _restore(self) -> None:
        if self._known is not None:
            with contextlib.suppress(Timeout, OSError), self._locked():
                if self._version() is None:
                    self._write(self._known[1])

    def _write(self, content: bytes) -> None:
        found = read_state(self._path, self._parse)
        if found is None or found[0] != content:
            write_atomic(self._path, content, mode=0o600)  # easel.yaml may be readable by its owner only
        self._known = self._version(), content

    def _version(self) -> _Version | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f"{self._path.name}.lock"), timeout=_LOCK_TIMEOUT_S):
            yield


def _content(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"
