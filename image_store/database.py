"""Connections to the index's SQLite file, which threads and processes share: opening, migrating, and replacing a damaged
one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from errors import IndexUnavailable, SearchTimedOut
from state_files import ensure_folder, is_file_or_missing, set_aside

log = logging.getLogger("easel.images")

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MAX_IDLE = 3
"""Connections that are kept open in each process; each has a cache of up to 2 MB"""
_CACHE_KIB = 2048
_READ_TIMEOUT_S = 5.0
_LOCK_TIMEOUT_S = 5.0
_MAX_OPENINGS = 5
"""How often a file is opened that other processes replace meanwhile"""
_MIN_FREE_BYTES = 4_000_000
"""A file that has more free pages than this, and than used ones, is written again without them"""

_STEPS_PER_LOOK = 10_000
"""Of SQLite's virtual machine, some 0.2 ms, between two looks at the time"""

FileId = tuple[int, int]
"""Device and inode"""


class Database:
    """One SQLite file. Safe for many threads and processes, also after a fork. The file is made when it is first used, and
    made again after it was deleted. A damaged one is set aside.

    `migrations`: SQL scripts; number N brings a file from version N to N+1. `prepare`: called once
    for each file that this process opens, when it has the last version. `generation` counts these files."""

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        prepare: Callable[[sqlite3.Connection], None] = lambda connection: None,
    ) -> None:
        self._path, self._migrations, self._prepare = path, migrations, prepare
        self._writing = threading.Lock()
        self._state = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._pid = 0
        self._file: FileId | None = None
        self._abandoned: list[sqlite3.Connection] = []
        """Of the process that forked this one: closing them here would confuse SQLite's locks"""
        self.generation = 0

    # --- use ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self, max_cpu_s: float | None = None) -> Iterator[sqlite3.Connection]:
        """A connection in a read transaction, so that several queries see the same state. `max_cpu_s`: seconds of processor
        that this thread may use for them. Raises IndexUnavailable, and SearchTimedOut if they take more."""
        with self._errors(), self._borrowed(_READ_TIMEOUT_S) as connection:
            if max_cpu_s is not None:
                end = time.thread_time() + max_cpu_s
                connection.set_progress_handler(lambda: time.thread_time() > end, _STEPS_PER_LOOK)
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                connection.set_progress_handler(None, 0)
                connection.rollback()

    @contextlib.contextmanager
    def writing(self, timeout_s: float) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction that is committed at the end of the block, or rolled back if it raises. `timeout_s`:
        how long it waits for other writers. Raises IndexUnavailable."""
        # Threads of this process wait here and not in SQLite, which looks only now and then.
        if not self._writing.acquire(timeout=timeout_s):
            raise IndexUnavailable("The image index is being written by another request; try again.")
        try:
            with self._errors(), self._borrowed(timeout_s) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        connection.rollback()
                    raise
                connection.commit()
        finally:
            self._writing.release()

    def checkpoint(self) -> bool:
        """Write what is in the log file to the database and empty the log file; false if somebody reads it for so long that
        it is not emptied. Raises IndexUnavailable."""
        with self._errors(), self._borrowed(1.0) as connection:
            is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy

    def shrink(self) -> None:
        """Give the disk back what removed rows have left, if that is most of the file. Raises IndexUnavailable."""
        with self._errors(), self._borrowed(1.0) as connection:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            if free * page_bytes > _MIN_FREE_BYTES and free > pages // 2:
                # Needs room on the disk itself. It is tried again after the next deletion.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("VACUUM")
                    # VACUUM writes to the log file only; the file itself would stay as large until much more is written.
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_INTERRUPT:  # by the handler of `reading`
                raise SearchTimedOut("The search took too long; search for fewer or longer words.") from error
            raise IndexUnavailable(
                f"The image index cannot be used at the moment: {error}.", is_replaced=_is_damage(error)
            ) from error
        except OSError as error:
            raise IndexUnavailable(f"The image index cannot be opened: {error.strerror or error}.") from error

    # --- connections -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _borrowed(self, timeout_s: float) -> Iterator[sqlite3.Connection]:
        self._forget_stale()
        with self._state:
            connection = self._idle.pop() if self._idle else None
            file = self._file
        if connection is None:
            connection, file = self._open()
            with self._state:
                if self._file != file:
                    self._file = file
                    self.generation += 1
        try:
            connection.execute(f"PRAGMA busy_timeout={int(timeout_s * 1000)}")
            yield connection
        except BaseException as error:
            connection.close()
            if _is_damage(error):
                self._replace(file, error)
            raise
        with self._state:
            if self._pid == os.getpid() and file == self._file and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _forget_stale(self) -> None:
        """Forget the connections of the process that forked this one, and those to a file that is not there any more."""
        with self._state:
            if self._pid != os.getpid():
                self._abandoned += self._idle
                self._idle, self._pid, self._file = [], os.getpid(), None
                return
            if self._file is None or self._file == self._current_file():
                return
            stale, self._idle, self._file = self._idle, [], None
        for connection in stale:
            connection.close()

    def _current_file(self) -> FileId | None:
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _open(self) -> tuple[sqlite3.Connection, FileId]:
        """A connection, and which file it is to. Raises sqlite3.Error, OSError and IndexUnavailable."""
        connection, file = self._connect()
        try:
            connection.execute(f"PRAGMA busy_timeout={int(_READ_TIMEOUT_S * 1000)}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(self._migrations):
                raise IndexUnavailable(
                    f"The image index was written by a newer Easel: it has version {version}, and this Easel knows "
                    f"{len(self._migrations)}. Update Easel, or move images/{self._path.name} away: it is made again from "
                    "the images, without the prompts of those that have none in their file.",
                    version=version,
                    known=len(self._migrations),
                    retry_after_s=None,
                )
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            # A power cut may lose the last transactions, as it may lose the last images.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA secure_delete=ON").fetchone()
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            if version < len(self._migrations):
                self._migrate(connection)
            if file != self._file:
                self._prepare(connection)
        except BaseException as error:
            connection.close()
            if _is_damage(error):
                self._replace(file, error)
            raise
        return connection, file

    def _connect(self) -> tuple[sqlite3.Connection, FileId]:
        """Raises sqlite3.Error, OSError and IndexUnavailable."""
        for _ in range(_MAX_OPENINGS):
            self._make_file()
            file = self._current_file()
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            # Else another process has moved the file away meanwhile, and what is written would be lost with it.
            if file is not None and file == self._current_file():
                return connection, file
            connection.close()
        raise OSError(errno.EBUSY, "other processes replace it again and again")

    def _make_file(self) -> None:
        """Make the file if it is not there. Its log files are those of a file that is gone: they are removed before there is
        a new one, because it would use them."""
        if self._is_file():
            return
        ensure_folder(self._path.parent, 0o700)
        with self._replacing():
            if self._is_file():
                return
            for path in (self._path, *self._log_files()):
                if not is_file_or_missing(path):
                    set_aside(path, IsADirectoryError("it is not a file"))
            for path in self._log_files():
                path.unlink(missing_ok=True)
            # SQLite would let the umask decide who may read it.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self._path, flags, 0o600))

    def _is_file(self) -> bool:
        return is_file_or_missing(self._path) and os.path.lexists(self._path)

    def _log_files(self) -> Iterator[Path]:
        return (self._path.with_name(self._path.name + suffix) for suffix in ("-wal", "-shm"))

    @contextlib.contextmanager
    def _replacing(self) -> Iterator[None]:
        """Only one process at a time removes or makes the file. Raises IndexUnavailable and OSError."""
        lock = FileLock(self._path.with_name(f".{self._path.name}.lock"), timeout=_LOCK_TIMEOUT_S, mode=0o600)
        try:
            lock.acquire()
        except Timeout as error:
            raise IndexUnavailable("Another process is making the image index; try again.") from error
        try:
            yield
        finally:
            lock.release()

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Forward, one version after the other, in one transaction."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute(
                "PRAGMA user_version"
            ).fetchone()  # another process may have been faster
            for number in range(version, len(self._migrations)):
                for statement in _statements(self._migrations[number]):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={max(version, len(self._migrations))}")
            connection.commit()
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise

    # --- damage ------------------------------------------------------------------------------------

    def _replace(self, file: FileId | None, error: BaseException) -> None:
        """Set a damaged file aside, unless another process or thread has done so already. Never raises."""
        with contextlib.suppress(OSError, IndexUnavailable), self._replacing():
            if file is not None and file == self._current_file():
                set_aside(self._path, error)


def _is_damage(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and _code(error) in _DAMAGED


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 if the error is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, each of which ends with a semicolon at the end of a line."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
