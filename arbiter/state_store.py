"""What every process must agree on, in one folder: the mutex, the state, the pace. Knows files; decides nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from arbiter.values import STATE_LOST, Pace, State, Switch
from atomic_file import write_atomic
from errors import GpuBusy, StoreFull, shorten
from gpu_tenant import Resident
from schemas import validator_of

log = logging.getLogger("easel.gpu")

_MUTEX_S = 10.0
"""It is held for a millisecond; whoever holds it longer is stopped or stuck on a dead disk."""


Stamp = tuple[int, int, int]
_SETTLED_NS = 20_000_000
"""Writes within one tick of the file system's clock leave the same time, and the size and inode number may be the same
too. What was read when the time was this old is the last word."""


_PACE_S = 1.0


_PROBE_BYTES = 4096


def _unwritable(error: OSError) -> StoreFull:
    return StoreFull(f"The state directory cannot be written: {error.strerror}.")


class _Known(NamedTuple):
    """`stamp` is None while the content must be read again."""

    stamp: Stamp | None
    content: bytes
    state: State


def _is_settled(stamp: Stamp | None) -> bool:
    return stamp is not None and abs(time.time_ns() - stamp[1]) > _SETTLED_NS


class StateStore:
    """Safe for threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state_file, self._pace_file = folder / "state.json", folder / "pace.json"
        self._start_file, self._saved_file = folder / "started", folder / "saved.json"
        self._known: _Known | None = None
        self._has_folder = False
        self._pace: Pace | None = None
        self._pace_read = 0, Pace()
        self._paced_at = 0.0
        self._start_locks()
        _state_store.add(self)

    def _start_locks(self) -> None:
        self._thread_lock = threading.RLock()
        self._file_lock = FileLock(
            self.folder / "mutex.lock",
            timeout=_MUTEX_S,
            poll_interval=0.001,
            is_singleton=False,
            thread_local=False,
        )

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        """One process and thread at a time; may be entered again by the thread that is in. Raises GpuBusy."""
        with self._thread_lock:
            self._make_folder()
            try:
                self._file_lock.acquire()
            except Timeout:
                raise GpuBusy(
                    "The lock of the GPU's state is held by a process that does not go on."
                ) from None
            try:
                yield
            finally:
                self._file_lock.release()

    def _make_folder(self) -> None:
        """Not before it is needed: most commands need no state directory."""
        if not self._has_folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._has_folder = True

    def state(self) -> State:
        """The state now. Costs a look at the file's time while it is unchanged."""
        stamp = self._stamp()
        known = self._known
        if known is not None and known.stamp == stamp and stamp is not None:
            return known.state
        try:
            return self._parsed(stamp, self._state_file.read_bytes())
        except FileNotFoundError:
            # Not written before there is something to write: a full disk shall not stop pictures.
            return State()
        except Exception as error:
            return self._made_anew(error)

    def write(self, state: State) -> None:
        """Put `state` in the place of what is there, whole. Under the mutex only. Raises StoreFull."""
        content = json.dumps(state.as_json()).encode()
        before = self._known
        try:
            if before is None or before.state.saved != state.saved:
                write_atomic(self._saved_file, json.dumps([asdict(item) for item in state.saved]).encode())
            write_atomic(self._state_file, content)
        except OSError as error:
            raise _unwritable(error) from error
        self._known = _Known(None, content, state)

    def update(self, change: Callable[[State], State]) -> State:
        """Read, change and write under the mutex; gives what is now true."""
        with self.mutex():
            before = self.state()
            after = change(before)
            if after != before:
                self.write(after)
            return after

    def _stamp(self) -> Stamp | None:
        try:
            entry = os.stat(self._state_file)
        except OSError:
            return None
        return entry.st_ino, entry.st_mtime_ns, entry.st_size

    def _parsed(self, stamp: Stamp | None, content: bytes) -> State:
        known = self._known
        if known is not None and known.content == content:
            state = known.state
        else:
            document = json.loads(content)
            validator_of("gpu_state").validate(document)
            state = State.from_json(document)
        self._known = _Known(stamp if _is_settled(stamp) else None, content, state)
        return state

    def _made_anew(self, error: Exception) -> State:
        """A state file that cannot be used is kept beside the new one, for whoever wants to know what happened."""
        with self.mutex():
            # Another process may have been first.
            with contextlib.suppress(Exception):
                return self._parsed(self._stamp(), self._state_file.read_bytes())
            aside = self._state_file.with_suffix(f".{int(time.time())}.corrupt")
            with contextlib.suppress(OSError):
                os.replace(self._state_file, aside)
            words = shorten(str(error).partition("\n")[0], 200)
            log.error(
                "the GPU's state could not be used (%s); it is now %s and was made anew", words, aside.name
            )
            state = replace(self._unknown(), rebuilt=f"{aside.name}: {words}")
            self.write(state)
            return state

    def _unknown(self) -> State:
        """Nobody knows who has the GPU: no lease is granted until it was emptied of the engine and given to the LLMs. What
        they had loaded is known from a file of its own."""
        now = time.time()
        switch = Switch(1, "inference", STATE_LOST, now, phase_since=now)
        return State(mode="generation", since=now, switch=switch, saved=self._saved())

    def _saved(self) -> tuple[Resident, ...]:
        try:
            return tuple(Resident(**item) for item in json.loads(self._saved_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return ()

    def mark_start(self) -> None:
        """The whole server starts, not just one of its processes."""
        self._make_folder()
        self._start_file.touch()

    def started_at(self) -> float | None:
        """When the whole server last started, in Unix seconds; None if none ever did here."""
        try:
            return self._start_file.stat().st_mtime
        except OSError:
            return None

    def check_writable(self) -> None:
        """Raises StoreFull when no switch could be written down, so that nobody waits for one."""
        probe = self.folder / f".writable.{os.getpid()}.{threading.get_ident()}"
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            raise _unwritable(error) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    # --- how the engine goes -----------------------------------------------------------------------

    def pace(self) -> Pace:
        """How the engine has been going; a file that cannot be read only costs the memory of it."""
        try:
            written = self._pace_file.stat().st_mtime_ns
            if written != self._pace_read[0]:
                self._pace_read = written, Pace(**json.loads(self._pace_file.read_bytes()))
            return self._pace_read[1]
        except (OSError, ValueError, TypeError):
            return Pace()

    def note_use(self, now: float, seconds: float | None = None) -> None:
        """The engine was in use at `now`, and a job took `seconds`. Written about once a second at the most."""
        known = self._pace if self._pace is not None and 0 <= now - self._paced_at < _PACE_S else self.pace()
        self._pace = known.used(now, seconds)
        if not 0 <= now - self._paced_at < _PACE_S:
            self._paced_at = now
            with contextlib.suppress(OSError):
                write_atomic(self._pace_file, json.dumps(asdict(self._pace)).encode())


_state_store: weakref.WeakSet[StateStore] = weakref.WeakSet()


def _start_all_locks() -> None:
    """A lock of the parent says nothing about its forked child."""
    for state_store in _state_store:
        state_store._start_locks()


os.register_at_fork(after_in_child=_start_all_locks)
