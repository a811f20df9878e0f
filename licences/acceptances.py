"""The file with the licences that were accepted: who accepted which text, and when. Several processes may read and add."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atomic_file import write_atomic
from errors import StateUnwritable
from state_files import read_state

log = logging.getLogger("easel.licences")

_LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Acceptance:
    """`licence`, `url`: the name and the address of the text; `model`: None if it holds for every model with this licence.
    `at`: in UTC, such as 2026-11-27T10:00:00Z."""

    licence: str
    url: str | None
    model: str | None
    by: str
    at: str

    @property
    def key(self) -> AcceptanceKey:
        return self.licence, self.url, self.model


AcceptanceKey = tuple[str, str | None, str | None]


class Acceptances:
    """The acceptances in `path`. Thread-safe. A missing or damaged file has none; a damaged one is moved aside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._found: dict[AcceptanceKey, Acceptance] = {}

    def current(self) -> dict[AcceptanceKey, Acceptance]:
        """Those in the file now. It is read only if it has changed since the last call."""
        with self._lock:
            stamp = self._read_stamp()
            if stamp is None or stamp != self._stamp:
                found = self._read() if stamp is not None else {}
                if self._found and not found:
                    log.warning(
                        "%s is gone or damaged: the %d licences that were accepted must be accepted again",
                        *(self._path.name, len(self._found)),
                    )
                self._stamp, self._found = stamp, found
            return self._found

    def add(self, new: Iterable[Acceptance]) -> None:
        """Add `new`; one that is there already keeps its first entry. Raises StateUnwritable."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S):
                found = self._read()
                merged = {**{each.key: each for each in new}, **found}
                if merged != found:
                    text = json.dumps({"accepted": [asdict(each) for each in merged.values()]}, indent=1)
                    write_atomic(self._path, text.encode("utf-8"), flush=True)
        except Timeout as error:
            raise StateUnwritable(
                f"{self._path.name} is being written by another process; try again."
            ) from error
        except OSError as error:
            raise StateUnwritable(f"{self._path} cannot be written: {error.strerror}.") from error

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> dict[AcceptanceKey, Acceptance]:
        return read_state(self._path, _parse) or {}


def _parse(document: Any) -> dict[AcceptanceKey, Acceptance]:
    found = [Acceptance(**entry) for entry in document["accepted"]]
    for each in found:
        if not all(isinstance(value, str) for value in (each.licence, each.by, each.at)) or not all(
            value is None or isinstance(value, str) for value in (each.url, each.model)
        ):
            raise ValueError("an entry has a value of the wrong type")
    return {each.key: each for each in found}
