"""Values that several processes write and any of them reads, in the file format of prometheus-client's multiprocess mode.

Written with `pwrite` instead of prometheus-client's own `mmap`: there a full disk or a truncated file kills the process
with SIGBUS, here it is an OSError. What could not be written is kept in memory and written once it can be.

Each process has a slot with files of its own. The slot of a process that has ended is used again by a new one, which goes
on with its counters, so that counters survive every process, and there are never more files than there were processes at
the same time. Gauges end with their process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

log = logging.getLogger("easel.metrics")

_Dict: Any = MmapedDict
_Collector: Any = MultiProcessCollector
"""Without types"""

Kind = Literal["counter", "histogram", "gauge_livesum"]
KINDS: tuple[Kind, ...] = ("counter", "histogram", "gauge_livesum")
_HEADER = struct.Struct("ii")
_LENGTH = struct.Struct("i")
_VALUE = struct.Struct("dd")
_MAX_SERIES = 20_000
"""Per kind and process; the bounds of the labels allow fewer"""
_MAX_SLOTS = 1000
_RETRY_INTERVAL_S = 5.0
_CHECK_INTERVAL_S = 1.0
"""Between two looks whether the folder is still there"""


@dataclass(frozen=True)
class Series:
    """One value: the name of its metric, its own name (such as `..._bucket`), and its labels."""

    metric: str
    name: str
    labels: tuple[tuple[str, str], ...]
    help: str

    def key(self) -> str:
        names, values = [name for name, _ in self.labels], [value for _, value in self.labels]
        return str(mmap_key(self.metric, self.name, names, values, self.help))


class _Entry:
    __slots__ = ("is_written", "position", "value")

    def __init__(self, value: float = 0.0, position: int | None = None) -> None:
        self.value, self.position, self.is_written = value, position, position is not None


class ValueFile:
    """The values of one process and kind. Not safe for threads. Without a descriptor they are only in memory."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._close: Callable[[], object] | None = None
        self._used = 0
        self._entries: dict[Series, _Entry] = {}
        self._adopted: dict[str, tuple[int, float]] = {}
        """Those that an earlier process has left, until they are used: key -> position and value"""

    def open(self, path: Path) -> None:
        """Go on with the file, and write what was not written yet. Raises OSError."""
        if self.is_intact(path):
            self._flush()
            return
        self.close()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            adopted, used = _read(path, os.fstat(descriptor).st_size)
            if not adopted:
                used = _HEADER.size
                os.ftruncate(descriptor, 0)
                _write(descriptor, _HEADER.pack(used, 0), 0)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._used, self._adopted = descriptor, used, adopted
        self._close = _closes_with(self, descriptor)
        for series, entry in self._entries.items():
            entry.position, entry.is_written = None, False
            self._adopt(series, entry)
        self._flush()

    def _flush(self) -> None:
        for series, entry in self._entries.items():
            if not entry.is_written:
                self._store(series, entry)

    def is_intact(self, path: Path) -> bool:
        """Whether the file at `path` is the open one, and complete."""
        if self._descriptor < 0:
            return False
        try:
            there, mine = os.stat(path), os.fstat(self._descriptor)
            header = os.pread(self._descriptor, _HEADER.size, 0)
        except OSError:
            return False
        is_same = (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
        return is_same and there.st_size >= self._used and header == _HEADER.pack(self._used, 0)

    def close(self) -> None:
        if self._close is not None:
            self._close()
        self._descriptor, self._close = -1, None

    def add(self, series: Series, amount: float) -> None:
        """Raises OSError if the value could only be changed in memory."""
        entry = self._entries.get(series)
        if entry is None:
            if len(self._entries) >= _MAX_SERIES:
                return
            entry = self._entries[series] = _Entry()
            self._adopt(series, entry)
        elif amount == 0:
            return
        entry.value += amount
        entry.is_written = False
        self._store(series, entry)

    def values(self) -> Iterator[tuple[Series, float]]:
        """Those that this process has changed."""
        for series, entry in list(self._entries.items()):
            yield series, entry.value

    def _adopt(self, series: Series, entry: _Entry) -> None:
        if self._adopted and (found := self._adopted.pop(series.key(), None)):
            entry.position = found[0]
            entry.value += found[1]

    def _store(self, series: Series, entry: _Entry) -> None:
        if self._descriptor < 0:
            return
        value = _VALUE.pack(entry.value, 0.0)
        if entry.position is not None:
            _write(self._descriptor, value, entry.position)
        else:
            encoded = series.key().encode()
            padded = encoded + b" " * (8 - (len(encoded) + _LENGTH.size) % 8)
            head = _LENGTH.pack(len(encoded)) + padded
            _write(self._descriptor, head + value, self._used)
            # Only now: readers go as far as this says.
            end = self._used + len(head) + len(value)
            _write(self._descriptor, _HEADER.pack(end, 0), 0)
            entry.position, self._used = self._used + len(head), end
        entry.is_written = True


def _closes_with(owner: object, descriptor: int) -> Callable[[], object]:
    """Closes the descriptor, once: when it is called, or when `owner` is dropped, such as in a forked child."""
    finalizer = weakref.finalize(owner, os.close, descriptor)
    finalizer.atexit = False  # values that the last threads report are counted, too
    return finalizer


def _write(descriptor: int, data: bytes, position: int) -> None:
    if os.pwrite(descriptor, data, position) < len(data):
        raise OSError(28, os.strerror(28))  # a disk that is nearly full takes a part


def _read(path: Path, size: int) -> tuple[dict[str, tuple[int, float]], int]:
    """The values of a file, key -> position and value, and its length in use; empty if it is damaged."""
    if size < _HEADER.size:
        return {}, 0
    try:
        found = {key: (at, value) for key, value, _, at in _Dict.read_all_values_from_file(str(path))}
    except (RuntimeError, ValueError, struct.error, IndexError):
        return {}, 0
    end = max((at for at, _ in found.values()), default=0)
    return found, end + _VALUE.size


class ValueFiles:
    """The values of this process, in `folder`, and those of all others. Safe for threads, and after a fork. Never raises:
    without a usable folder the values of this process stay in memory, the log says so once, and `problem` has the
    reason."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self.problem: str | None = None
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        """Also in a forked child: the slot is its parent's."""
        self._lock = threading.Lock()
        self._files: dict[Kind, ValueFile] = {kind: ValueFile() for kind in KINDS}
        self._slot: _Slot | None = None
        self._next_check_at = 0.0

    def add(self, kind: Kind, changes: Mapping[Series, float]) -> None:
        """Add to each value, all at once."""
        with self._lock:
            self._check_slot()
            file = self._files[kind]
            for series, amount in changes.items():
                try:
                    file.add(series, amount)
                except OSError as error:
                    self._fail(error)

    def close(self) -> None:
        """Give the slot to the next process. Whatever is added later goes into the slot that is free then."""
        with self._lock:
            for file in self._files.values():
                file.close()
            if self._slot is not None:
                self._slot.release()
            self._files = {kind: ValueFile() for kind in KINDS}
            self._slot, self._next_check_at = None, 0.0

    def _check_slot(self) -> None:
        """Take a slot, if this process has none or somebody has removed the folder."""
        now = self._clock()
        if now < self._next_check_at:
            return
        self._next_check_at = now + _CHECK_INTERVAL_S
        if self.problem is None and self._is_intact():
            return
        try:
            self._open_slot()
        except OSError as error:
            self._next_check_at = now + _RETRY_INTERVAL_S
            self._fail(error)
        else:
            if self.problem is not None:
                log.warning("metrics are written again")
            self.problem = None

    def _is_intact(self) -> bool:
        slot = self._slot
        return (
            slot is not None
            and slot.is_there()
            and all(file.is_intact(slot.path(kind)) for kind, file in self._files.items())
        )

    def _open_slot(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._slot is not None and not self._slot.is_there():
            self._slot.release()
            self._slot = None
        self._slot = self._slot or _Slot.take(self._folder)
        for kind, file in self._files.items():
            file.open(self._slot.path(kind))

    def _fail(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if self.problem is None:
            log.error("metrics cannot be written, so each worker reports only its own: %s", reason)
        self.problem = reason

    def metrics(self) -> list[Metric]:
        """The sums over all processes; only of this one while the folder cannot be used."""
        if self.problem is not None:
            return self._own_metrics()
        self._remove_gauges_of_dead()
        files = [str(path) for path in self._folder.glob("*.db") if _has_header(path)]
        try:
            return list(_Collector.merge(files))
        except Exception:  # a file is damaged
            return list(_Collector.merge([name for name in files if self._is_readable(name)]))

    def _own_metrics(self) -> list[Metric]:
        found: dict[str, Metric] = {}
        with self._lock:
            for kind, file in self._files.items():
                for series, value in file.values():
                    name, _, mode = kind.partition("_")
                    metric = found.setdefault(series.metric, Metric(series.metric, series.help, name))
                    metric._multiprocess_mode = mode  # type: ignore[attr-defined]
                    metric.add_sample(series.name, series.labels, value)  # type: ignore[arg-type]
        return list(_Collector._accumulate_metrics(found, True))

    def _is_readable(self, name: str) -> bool:
        try:
            _Collector.merge([name])
        except Exception as error:
            log.error("metrics in %s are not read, they are damaged: %s", os.path.basename(name), error)
            with contextlib.suppress(OSError):
                os.unlink(name)
            self._next_check_at = 0.0
            return False
        return True

    def _remove_gauges_of_dead(self) -> None:
        for path in self._folder.glob("gauge_*.db"):
            slot = path.stem.rpartition("_")[2]
            if self._slot is not None and slot == self._slot.name:
                continue
            if _Slot.is_free(self._folder, slot):
                with contextlib.suppress(OSError):
                    path.unlink()

    def clear(self) -> None:
        """Remove what an earlier server has counted. For a server that starts, before its workers do."""
        for path in (*self._folder.glob("*.db"), *self._folder.glob("*.lock")):
            with contextlib.suppress(OSError):
                path.unlink()


def _has_header(path: Path) -> bool:
    try:
        return path.stat().st_size >= _HEADER.size
    except OSError:
        return False


class _Slot:
    """The number that the files of one process have in their names; locked while it lives."""

    def __init__(self, folder: Path, name: str, descriptor: int) -> None:
        self._folder, self.name, self._descriptor = folder, name, descriptor
        self.release = _closes_with(self, descriptor)
        """Frees the number; once"""

    @classmethod
    def take(cls, folder: Path) -> _Slot:
        """The first free one. Raises OSError."""
        for number in range(_MAX_SLOTS):
            descriptor = _lock(folder / f"{number}.lock", create=True)
            if descriptor is None:
                continue
            slot = cls(folder, str(number), descriptor)
            if not slot.is_there():  # somebody has just removed the folder
                slot.release()
                continue
            with contextlib.suppress(OSError):
                os.unlink(slot.path("gauge_livesum"))
            return slot
        raise OSError(f"more than {_MAX_SLOTS} processes write metrics")

    @classmethod
    def is_free(cls, folder: Path, name: str) -> bool:
        """Whether the process that had the slot has ended."""
        try:
            descriptor = _lock(folder / f"{name}.lock", create=False)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def path(self, kind: Kind) -> Path:
        return self._folder / f"{kind}_{self.name}.db"

    def is_there(self) -> bool:
        """Whether all its files still are the locked ones."""
        try:
            there, mine = os.stat(self._folder / f"{self.name}.lock"), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _lock(path: Path, *, create: bool) -> int | None:
    """A descriptor of the locked file; None if another process has locked it. Raises OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


_instances: weakref.WeakSet[ValueFiles] = weakref.WeakSet()


def _reset_all() -> None:
    for instance in _instances:
        instance._reset()


os.register_at_fork(after_in_child=_reset_all)
