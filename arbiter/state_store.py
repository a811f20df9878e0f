"""The files that all processes share: the mutex, the state, the pace. Reads and writes them; decides nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from arbiter.file_mutex import FileMutex
from arbiter.values import STATE_LOST, Pace, State, Switch
from atomic_file import write_atomic
from errors import EaselError, GpuBusy, shorten
from gpu_tenant import Resident
from schemas import validator_of
from state_files import ensure_folder, read_file, read_state, set_aside
from system_errors import write_error

log = logging.getLogger("easel.gpu")

_MUTEX_TIMEOUT_S = 10.0
"""The mutex is held for a millisecond; a process that holds it longer is stopped or its disk does not respond."""


FileStamp = tuple[int, int, int]
_SETTLED_NS = 20_000_000
"""Writes within one tick of the file system's clock get the same time, and may have the same size and inode number.
Only content that was read when the file was older than this is reused while the stamp stays the same."""


_PACE_INTERVAL_S = 0.2
"""Between two writes of the pace"""


_PROBE_BYTES = 4096


def not_writable(error: OSError) -> EaselError:
    """The error to raise when something could not be written into the state directory: StoreFull, StateUnwritable,
    TooManyFiles or OutOfMemory."""
    return write_error(error, "the state directory")


class _Cached(NamedTuple):
    """`stamp` is None while the content must be read again."""

    stamp: FileStamp | None
    content: bytes
    state: State


def _is_settled(stamp: FileStamp | None, now_ns: int) -> bool:
    """`now_ns` is a time before the stat and the read: neither may make a fresh file look old by taking long. A file from
    the future (the clock was set back, or it was written after `now_ns`) never counts as settled."""
    return stamp is not None and now_ns - stamp[1] > _SETTLED_NS


class StateStore:
    """Safe for threads and processes."""

    def __init__(self, folder: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.folder, self._clock_ns = folder, clock_ns
        self._state_file, self._pace_file = folder / "state.json", folder / "pace.json"
        self._saved_file = folder / "saved.json"
        self._cached: _Cached | None = None
        self._has_folder = False
        self._pace: Pace | None = None
        self._cached_pace = 0, Pace()
        self._pace_written_at = 0.0
        self._file_mutex = FileMutex(folder / "mutex.lock")
        self._thread_lock = threading.RLock()
        _stores.add(self)

    def _forget_locks(self) -> None:
        """In a forked child: those of its parent are not its own."""
        self._file_mutex.close()
        self._thread_lock = threading.RLock()

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        """One process and thread at a time; the thread that holds it may enter again. Raises GpuBusy."""
        with self._thread_lock:
            try:
                self._acquire()
            except TimeoutError:
                raise GpuBusy(
                    f"Another process has held the lock of the GPU's state for more than {_MUTEX_TIMEOUT_S:g} s."
                ) from None
            except OSError as error:
                raise not_writable(error) from error
            try:
                yield
            finally:
                self._file_mutex.release()

    def _acquire(self) -> None:
        """Acquire the lock. The folder is created only now: most commands need no state directory."""
        if self._has_folder:
            # Somebody may have removed or replaced the folder meanwhile.
            with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
                self._file_mutex.acquire(_MUTEX_TIMEOUT_S)
                return
        ensure_folder(self.folder)
        self._has_folder = True
        self._file_mutex.acquire(_MUTEX_TIMEOUT_S)

    def state(self) -> State:
        """The current state. Costs one stat call while the file is unchanged. Raises what `not_writable` returns if the
        file cannot be read."""
        now_ns, stamp = self._clock_ns(), self._stamp()
        cached = self._cached
        if cached is not None and cached.stamp == stamp and stamp is not None:
            return cached.state
        try:
            return self._parse(now_ns, stamp, read_file(self._state_file))
        except (FileNotFoundError, NotADirectoryError):
            # The initial state is not written, so that a full disk does not stop pictures.
            return State()
        except IsADirectoryError as error:
            return self._rebuild(error)
        except OSError as error:
            # Too many open files, or no access: nothing is wrong with the file.
            raise not_writable(error) from error
        except Exception as error:
            return self._rebuild(error)

    def write(self, state: State) -> None:
        """Replace the stored state as a whole. Call it under the mutex. Raises what `not_writable` returns."""
        content = json.dumps(state.as_json()).encode()
        before = self._cached
        try:
            if before is None or before.state.saved != state.saved:
                write_atomic(self._saved_file, json.dumps([asdict(item) for item in state.saved]).encode())
            write_atomic(self._state_file, content)
        except OSError as error:
            raise not_writable(error) from error
        self._cached = _Cached(None, content, state)

    def update(self, change: Callable[[State], State]) -> State:
        """Read, change and write the state under the mutex; returns the new state. Raises GpuBusy and what
        `not_writable` returns."""
        with self.mutex():
            before = self.state()
            after = change(before)
            if after != before:
                self.write(after)
            return after

    def _stamp(self) -> FileStamp | None:
        try:
            entry = os.stat(self._state_file)
        except OSError:
            return None
        return entry.st_ino, entry.st_mtime_ns, entry.st_size

    def _parse(self, now_ns: int, stamp: FileStamp | None, content: bytes) -> State:
        cached = self._cached
        if cached is not None and cached.content == content:
            state = cached.state
        else:
            document = json.loads(content)
            validator_of("gpu_state").validate(document)
            state = State.from_json(document)
        self._cached = _Cached(stamp if _is_settled(stamp, now_ns) else None, content, state)
        return state

    def _rebuild(self, error: Exception) -> State:
        """Replace a state file that cannot be used. The old file is kept beside the new one for diagnosis."""
        with self.mutex():
            # Another process may have rebuilt it already.
            with contextlib.suppress(Exception):
                return self._parse(self._clock_ns(), self._stamp(), read_file(self._state_file))
            kept = set_aside(self._state_file, error)
            message = shorten(str(error).partition("\n")[0], 200)
            state = replace(self._unknown_state(), rebuilt=f"{kept.name if kept else 'lost'}: {message}")
            self.write(state)
            return state

    def _unknown_state(self) -> State:
        """The state when it is unknown who has the GPU: an active switch to inference, so that no lease is granted
        until the engine has released its memory and the LLM stacks have the GPU. What they had loaded is read from
        saved.json."""
        now = time.time()
        switch = Switch(1, "inference", STATE_LOST, now, phase_since=now)
        return State(mode="generation", since=now, switch=switch, saved=self._saved())

    def _saved(self) -> tuple[Resident, ...]:
        return read_state(self._saved_file, _residents) or ()

    def check_writable(self) -> None:
        """Raises what `not_writable` returns if a switch could not be written, so that no request waits for a switch that
        cannot start."""
        probe = self.folder / f".writable.{os.getpid()}.{threading.get_ident()}"
        try:
            ensure_folder(self.folder)
            probe.write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            raise not_writable(error) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    # --- the engine's pace -------------------------------------------------------------------------

    def pace(self) -> Pace:
        """How long the engine's jobs take. A file that cannot be read counts as no measurement."""
        try:
            written_at = self._pace_file.stat().st_mtime_ns
        except OSError:
            return Pace()
        if written_at != self._cached_pace[0]:
            self._cached_pace = written_at, read_state(self._pace_file, _pace) or Pace()
        return self._cached_pace[1]

    def record_use(self, now: float, seconds: float | None = None) -> None:
        """Record that the engine was in use at `now`, and that a job took `seconds`. Written at most
        every 0.2 s."""
        is_recent = 0 <= now - self._pace_written_at < _PACE_INTERVAL_S
        before = self._pace if self._pace is not None and is_recent else self.pace()
        self._pace = before.with_use(now, seconds)
        if not is_recent:
            self._pace_written_at = now
            with contextlib.suppress(OSError):
                write_atomic(self._pace_file, json.dumps(asdict(self._pace)).encode())


def _residents(document: Any) -> tuple[Resident, ...]:
    """Raises TypeError or ValueError if the document is not a list of residents."""
    residents = tuple(Resident(**item) for item in document)
    if not all(
        isinstance(item.owner, str) and isinstance(item.id, str) and isinstance(item.saved, Mapping)
        for item in residents
    ):
        raise ValueError("not a list of residents")
    return residents


def _pace(document: Mapping[str, Any]) -> Pace:
    """Raises TypeError or ValueError if the values are not numbers of a pace."""
    pace = Pace(**document)
    if not all(
        isinstance(value, int | float) and math.isfinite(value) and value >= 0
        for value in vars(pace).values()
    ):
        raise ValueError("not a pace")
    return pace


_stores: weakref.WeakSet[StateStore] = weakref.WeakSet()


def _forget_all_locks() -> None:
    for store in _stores:
        store._forget_locks()


os.register_at_fork(after_in_child=_forget_all_locks)
