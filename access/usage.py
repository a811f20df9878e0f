"""How much each key has used: one small file for each, which all workers change under its lock. It is overwritten in place,
so that a full disk does not matter, and a killed process leaves a whole record. So nothing is rotated, unlike in audit.py,
and the lock is that of the file itself: each request takes it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from access.clock import Now, read_clock
from access.limits import WINDOWS, Limits
from access.ownership import keep_owner
from state_files import ensure_folder, set_aside

_DAY_S = 86_400
_COUNTS = "qqqd"
_RECORD = struct.Struct("<8s" + "Q" + "ddq" * len(WINDOWS) + "q" + _COUNTS * 2 + "d")
_MAGIC = b"easeluse"
_SUM = struct.Struct("<I")
_SIZE = _RECORD.size + _SUM.size
_LOCK_TIMEOUT_S = 2.0
_LOCK_PAUSE_S = 0.0002


@dataclass(slots=True)
class Window:
    """One window of a limit. `steady`, `wall`: when it began. `used`: since then."""

    steady: float = 0.0
    wall: float = 0.0
    used: int = 0


@dataclass(slots=True)
class Counts:
    """`refused`: requests that a limit refused. `gpu_s`: seconds in which the engine worked."""

    requests: int = 0
    pictures: int = 0
    refused: int = 0
    gpu_s: float = 0.0

    def add(self, other: Counts) -> None:
        self.requests += other.requests
        self.pictures += other.pictures
        self.refused += other.refused
        self.gpu_s += other.gpu_s


@dataclass(frozen=True)
class Level:
    """How far a limit is used. `reset_s`: until its window ends; None for a limit without one."""

    name: str
    limit: int
    used: int
    reset_s: float | None

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)


@dataclass
class Record:
    """What one key has used. `day`: the number of the day in UTC that `today` belongs to. `last_used`: Unix seconds, 0 for
    never."""

    boot: int = 0
    windows: dict[str, Window] = field(default_factory=lambda: {name: Window() for name in WINDOWS})
    day: int = 0
    today: Counts = field(default_factory=Counts)
    total: Counts = field(default_factory=Counts)
    last_used: float = 0.0

    def move_to(self, now: Now) -> None:
        """End what has ended by `now`. A window lasts its length by the steady clock, so that setting the wall clock changes
        nothing; over a restart of the machine by the wall clock, but never longer than its length from then on."""
        for name, window in self.windows.items():
            if self.boot != now.boot:
                window.steady = now.steady - max(0.0, now.wall - window.wall)
            elif now.boot == 0 and now.steady < window.steady:
                window.steady = now.steady  # only the wall clock is there, and it was set back
            if now.steady - window.steady >= WINDOWS[name]:
                window.steady, window.wall, window.used = now.steady, now.wall, 0
        self.boot = now.boot
        if (day := int(now.wall // _DAY_S)) != self.day:
            self.day, self.today = day, Counts()

    def levels(self, limits: Limits, now: Now, *names: str) -> Iterator[Level]:
        """Of the limits `names` (default: all with a window) that there are."""
        for name in names or WINDOWS:
            limit = getattr(limits, name)
            if limit is not None:
                window = self.windows[name]
                yield Level(name, limit, window.used, max(0.0, WINDOWS[name] - (now.steady - window.steady)))

    def take(self, limits: Limits, now: Now, number: int, *names: str) -> Level | None:
        """Count `number` in the windows `names`, unless that exceeds a limit: the level of that limit, and nothing is
        counted."""
        for level in self.levels(limits, now, *names):
            if level.used + number > level.limit:
                return level
        for name in names:
            self.windows[name].used += number
        return None

    def give_back(self, number: int, began: dict[str, float]) -> None:
        """Take back what was counted in windows that began at `began` (steady), as far as these still last."""
        for name, steady in began.items():
            window = self.windows[name]
            if window.steady == steady:
                window.used = max(0, window.used - number)

    def add(self, counts: Counts) -> None:
        self.today.add(counts)
        self.total.add(counts)

    def pack(self) -> bytes:
        windows = [
            value for window in self.windows.values() for value in (window.steady, window.wall, window.used)
        ]
        counts = [
            value
            for each in (self.today, self.total)
            for value in (each.requests, each.pictures, each.refused, each.gpu_s)
        ]
        content = _RECORD.pack(_MAGIC, self.boot, *windows, self.day, *counts, self.last_used)
        return content + _SUM.pack(zlib.crc32(content))

    @classmethod
    def unpack(cls, content: bytes) -> Record:
        """Raises ValueError if the content is not a record."""
        body = content[: _RECORD.size]
        if len(content) != _SIZE or _SUM.pack(zlib.crc32(body)) != content[_RECORD.size :]:
            raise ValueError("not a record of use")
        magic, boot, *values = _RECORD.unpack(body)
        if magic != _MAGIC:
            raise ValueError("not a record of use")
        windows = {name: Window(*values[3 * i : 3 * i + 3]) for i, name in enumerate(WINDOWS)}
        rest = values[3 * len(WINDOWS) :]
        return cls(boot, windows, rest[0], Counts(*rest[1:5]), Counts(*rest[5:9]), rest[9])


class UsageFiles:
    """The records in `folder`, by the id of the key. Safe for threads and processes."""

    def __init__(self, folder: Path, clock: Callable[[], Now] = read_clock) -> None:
        self._folder, self._clock = folder, clock

    @contextmanager
    def changing(self, key_id: str) -> Iterator[tuple[Record, Now]]:
        """The record of a key, moved to the present; it is stored at the end of the block. Raises OSError, TimeoutError."""
        path = f"{self._folder}/{key_id}.use"
        descriptor = self._open(path)
        try:
            record, now = self._read(descriptor, path), self._clock()
            record.move_to(now)
            yield record, now
            content = record.pack()
            if os.pwrite(descriptor, content, 0) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        finally:
            os.close(descriptor)  # also unlocks it

    def read(self, key_id: str) -> tuple[Record, Now]:
        """The record of a key, moved to the present. One that cannot be read is empty."""
        record, now = Record(), self._clock()
        try:
            with open(f"{self._folder}/{key_id}.use", "rb") as file:
                record = Record.unpack(file.read(_SIZE))
        except (OSError, ValueError):
            pass
        record.move_to(now)
        return record, now

    def prepare(self, key_id: str) -> None:
        """Make the file of a new key, so that its use can be counted while the disk is full. Raises OSError."""
        with self.changing(key_id):
            keep_owner(self._folder, self._folder / f"{key_id}.use")

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            ensure_folder(self._folder, 0o700)
            descriptor = os.open(path, flags, 0o600)
        try:
            _lock(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _read(self, descriptor: int, path: str) -> Record:
        content = os.pread(descriptor, _SIZE + 1, 0)
        if not content:
            return Record()
        try:
            return Record.unpack(content)
        except ValueError as error:
            # The damaged file is only copied: this process, and those that wait, have its lock.
            damaged = Path(path).with_suffix(".damaged")
            damaged.write_bytes(content)
            set_aside(damaged, error)
            os.ftruncate(descriptor, 0)
            return Record()


def _lock(descriptor: int, path: str) -> None:
    """Raises TimeoutError: the holder may be a process that was stopped."""
    deadline = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            deadline = deadline or now + _LOCK_TIMEOUT_S
            if now > deadline:
                raise TimeoutError(f"{path} is locked by another process") from None
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
