"""Which engines are drained: they finish what they have and get no new jobs. Kept in a file that all processes share, so
that it holds over restarts until somebody resumes them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atomic_file import write_atomic
from errors import StateUnwritable
from state_files import ensure_folder, read_state
from system_errors import write_error

_LOCK_TIMEOUT_S = 10.0
_MAX_TIME = 1e11
"""Unix seconds; a later time has no date"""


class Drains:
    """The file. A damaged one counts as empty: it is better to draw than to refuse."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._cached: tuple[tuple[int, int] | None, Mapping[str, float]] = None, {}

    def all(self) -> Mapping[str, float]:
        """The names of the drained engines -> since when (Unix time). Costs one stat call while the file is unchanged."""
        try:
            found = os.stat(self._path)
        except OSError:
            return {}
        stamp = found.st_ino, found.st_mtime_ns
        if stamp != self._cached[0]:
            self._cached = stamp, read_state(self._path, _drains) or {}
        return self._cached[1]

    def set(self, name: str, *, is_drained: bool) -> bool:
        """Whether that changed anything. Raises StoreFull and StateUnwritable."""
        try:
            ensure_folder(self._path.parent)
            with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S):
                drained = dict(self.all())
                if (name in drained) == is_drained:
                    return False
                if is_drained:
                    drained[name] = self._clock()
                else:
                    del drained[name]
                write_atomic(self._path, json.dumps({"drained": drained}).encode() + b"\n")
        except Timeout:
            raise StateUnwritable("Another process changes the list of drained engines.") from None
        except OSError as error:
            raise write_error(error, "the state directory") from error
        return True


def _drains(document: Any) -> Mapping[str, float]:
    """Raises Exception for a document of another shape."""
    drained = {str(name): float(since) for name, since in document["drained"].items()}
    if not all(0 <= since < _MAX_TIME for since in drained.values()):
        raise ValueError("not a time")
    return drained
