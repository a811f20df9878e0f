"""Connections to the index's SQLite file, which threads and processes share: opening, migrating, and replacing a damaged
one."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from errors import IndexUnavailable
from state_files import ensure_folder, is_file_or_missing, set_aside

log = logging.getLogger("easel.images")

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MAX_IDLE = 3
"""Connections that are kept open in each process; each has a cache of up to 2 MB"""
_CACHE_KIB = 2048
_READ_TIMEOUT_S = 5.0
_REPLACE_TIMEOUT_S = 5.0


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
        self._file: tuple[int, int] | None = None
        self._abandoned: list[sqlite3.Connection] = []
        """Of the process that forked this one: closing them here would confuse SQLite's locks"""
        self.generation = 0

    # --- use ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in a read transaction, so that several queries see the same state. Raises IndexUnavailable."""
        with self._errors(), self._borrowed(_READ_TIMEOUT_S) as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
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

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            is_damaged = _code(error) in _DAMAGED
            if is_damaged:
                self._replace(error)
            raise IndexUnavailable(
                f"The image index cannot be used at the moment: {error}.", is_replaced=is_damaged
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
        except BaseException:
            connection.close()
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

    def _current_file(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _open(self) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
        """A connection, and which file it is to. Raises sqlite3.Error, OSError and IndexUnavailable."""
        if not is_file_or_missing(self._path):
            set_aside(self._path, IsADirectoryError("it is not a file"))
        connection = self._connect()
        file = self._current_file()
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
            if isinstance(error, sqlite3.Error):
                self._file = file  # for `_replace`
            raise
        return connection, file

    def _connect(self) -> sqlite3.Connection:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(os.open(self._path, flags, 0o600))  # SQLite would let the umask decide who may read it
        except (FileNotFoundError, NotADirectoryError):
            ensure_folder(self._path.parent, 0o700)
            os.close(os.open(self._path, flags, 0o600))
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)

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

    def _replace(self, error: Exception) -> None:
        """Set a damaged file aside, once: another process may have replaced it already. Never raises."""
        damaged = self._file
        with (
            contextlib.suppress(OSError, Timeout),
            FileLock(
                self._path.with_name(f".{self._path.name}.lock"), timeout=_REPLACE_TIMEOUT_S, mode=0o600
            ),
        ):
            if damaged is not None and damaged != self._current_file():
                return
            set_aside(self._path, error)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


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
