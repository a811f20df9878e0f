"""The audit log: who changed the server for others, when, what and with which result. One line of JSON for each action, in
a file that is rotated by its size.

Every entry is written under a lock: so the files keep to their size, and a line that another process left cut off is seen.
The arbiter's event log shares no code with this: its writers never wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from access.ownership import keep_owner
from errors import EaselError, shorten

log = logging.getLogger("easel.audit")

MAX_BYTES = 5_000_000
MAX_FILES = 5
_MAX_TEXT = 300
_MAX_LIST = 100
_LOCK_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Actor:
    """`name`: of the caller. `address`: of its client; for a command the user of this machine."""

    name: str
    address: str


@dataclass(frozen=True)
class Entry:
    """`at`: in UTC, such as 2026-11-27T10:00:00.123Z. `target`: plain JSON, without secrets. `result`: one word, or the code
    of an error."""

    at: str
    who: str
    address: str
    action: str
    target: Mapping[str, Any]
    result: str


class AuditLog:
    """The log at `path`. Safe for threads and processes."""

    def __init__(
        self, path: Path, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self._max_bytes, self._clock = path, max_bytes, clock

    def record(self, actor: Actor, action: str, target: Mapping[str, Any], result: str) -> None:
        """Append an entry. Never raises: on a full disk the entry is only in the server's log, and the action, which has
        happened, is not undone."""
        entry = Entry(self._now(), actor.name, actor.address, action, _shortened(target), result)
        line = json.dumps(asdict(entry)).encode()
        try:
            self._append(line)
        except (OSError, Timeout) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            log.warning("an entry is missing in %s (%s): %s", self._path.name, reason, line.decode())

    @contextlib.contextmanager
    def recording(
        self, actor: Actor, action: str, target: Mapping[str, Any]
    ) -> Iterator[Callable[[str], None]]:
        """Record what happens in the block; yields a function that gives the result, without which it is "done". Of an
        error the code is the result, of another exception what was given."""
        result = ""

        def set_result(value: str) -> None:
            nonlocal result
            result = value

        try:
            yield set_result
        except EaselError as error:
            result = error.code
            raise
        except Exception:
            result = result or EaselError.code
            raise
        except BaseException:  # such as Ctrl-C
            result = result or "cancelled"
            raise
        finally:
            self.record(actor, action, target, result or "done")

    def entries(self) -> Iterator[Entry]:
        """All entries, the oldest first. Lines that are damaged are left out."""
        for path in (*(self._numbered(number) for number in range(MAX_FILES - 1, 0, -1)), self._path):
            with contextlib.suppress(OSError):
                for line in path.read_bytes().splitlines():
                    with contextlib.suppress(ValueError, TypeError, RecursionError):
                        entry = Entry(**json.loads(line))
                        if isinstance(entry.target, dict) and all(
                            isinstance(text, str)
                            for text in (entry.at, entry.who, entry.address, entry.action, entry.result)
                        ):
                            yield entry

    def _now(self) -> str:
        now = self._clock()
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S, mode=0o600):
            if self._size() + len(line) > self._max_bytes:
                self._rotate()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._path, flags, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if not size:
                    keep_owner(self._path, self._path.with_suffix(".lock"))
                # A process that was killed, or a full disk, may have left a part of a line.
                is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                content = (b"\n" if is_cut else b"") + line + b"\n"
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            finally:
                os.close(descriptor)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _rotate(self) -> None:
        for number in range(MAX_FILES - 1, 0, -1):
            source = self._path if number == 1 else self._numbered(number - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(source, self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _shortened(value: Any) -> Any:
    """`value` so that its line is short: a client may have chosen its texts."""
    if isinstance(value, str):
        return shorten(value, _MAX_TEXT)
    if isinstance(value, Mapping):
        return {str(name): _shortened(inner) for name, inner in value.items()}
    return [_shortened(inner) for inner in value[:_MAX_LIST]] if isinstance(value, list | tuple) else value
