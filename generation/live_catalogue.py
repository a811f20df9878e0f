"""The current catalogue, reloaded when its files change. A valid edit takes effect without a restart; an invalid one
is refused and the last good catalogue stays. The last good texts are kept in the state directory, so that a worker
that starts after an invalid edit serves the same catalogue as the older workers."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from atomic_file import write_atomic
from compiler import Catalogue, Size, SourcePaths, Sources, load_catalogue, read_sources
from errors import CatalogueInvalid, EaselError, SettingsInvalid, shorten

log = logging.getLogger("easel.catalogue")


class FileStamp(NamedTuple):
    """Identifies one state of a file."""

    name: str
    inode: int
    changed_ns: int
    size: int


Stamp = tuple[FileStamp, ...]
"""The stamps of all source files. Equal stamps mean equal files."""

ApplyChoices = Callable[[Catalogue], Catalogue]
"""Puts this installation's choices (default model, hidden models) into a new catalogue, or raises SettingsInvalid."""


class LiveCatalogue:
    """`current()` returns the current catalogue. Thread-safe; each process has its own."""

    def __init__(
        self,
        paths: SourcePaths,
        last_good_file: Path,
        *,
        apply_choices: ApplyChoices = lambda catalogue: catalogue,
        settle_s: float = 0.2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads and checks the files. Raises CatalogueInvalid: a server does not start with a broken catalogue.

        The last good texts are written to `last_good_file`. A file must be unchanged for `settle_s` before it is
        read, so that an editor's half-written file never is. `clock` gives seconds since the epoch.
        """
        self._paths, self._last_good_file, self._apply_choices = paths, last_good_file, apply_choices
        self._settle_s, self._clock = settle_s, clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._checked_stamp = self._read_stamp()
        self.error: EaselError | None = None
        """Why the files as they are now were refused, or None."""
        self.loaded_at = int(time.time())
        """Unix time at which the current catalogue was loaded"""
        self._catalogue = self._accept(read_sources(paths))

    def current(self) -> Catalogue:
        """The current catalogue. Checks the files' modification times; never raises for an invalid edit."""
        if self._pid != os.getpid():
            self._after_fork()
        stamp = self._read_stamp()
        if stamp != self._checked_stamp and self._lock.acquire(blocking=False):
            try:
                self._reload(stamp)
            finally:
                self._lock.release()
        return self._catalogue

    def _reload(self, stamp: Stamp) -> None:
        if self._is_being_written(stamp):
            return
        self._checked_stamp = stamp
        try:
            self._catalogue = self._accept(read_sources(self._paths))
        except EaselError as error:
            self._refuse(error)
        except Exception as error:
            # A parser may raise anything. That must refuse the edit, not fail the request that happened to notice it.
            self._refuse(
                CatalogueInvalid(
                    f"{self._paths.catalogue.name}: {type(error).__name__}: {shorten(str(error), 300)}"
                )
            )
        else:
            self.error, self.loaded_at = None, int(time.time())
            log.info("catalogue reloaded: %d models", len(self._catalogue.models))

    def _is_being_written(self, stamp: Stamp) -> bool:
        # A modification time in the future means that the clock was set back, not that the file is being written.
        last_change = max((entry.changed_ns for entry in stamp), default=0) / 1e9
        return 0 <= self._clock() - last_change < self._settle_s

    def _refuse(self, error: EaselError) -> None:
        self.error = error
        log.error("the changed catalogue is not valid; the last good one stays in use: %s", error.message)

    def _accept(self, sources: Sources) -> Catalogue:
        catalogue = self._apply_choices(load_catalogue(sources))
        # If the state directory is not writable, only the copy of the last good catalogue is lost.
        with contextlib.suppress(OSError):
            write_atomic(self._last_good_file, sources.dump().encode())
        return catalogue

    def _after_fork(self) -> None:
        """A worker forked from the master has the catalogue of the server's start. If the files have changed since and
        are now invalid, the last good file has what the older workers loaded in between."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        if self._read_stamp() == self._checked_stamp:
            return
        try:
            sources = Sources.load(self._last_good_file.read_text("utf-8"))
            self._catalogue = self._apply_choices(load_catalogue(sources))
        except (OSError, ValueError, TypeError, EaselError) as error:
            log.warning("the last good catalogue cannot be loaded: %s", error)

    def _read_stamp(self) -> Stamp:
        stamp: list[FileStamp] = []
        for path in self._paths.files():
            with contextlib.suppress(OSError):
                stat = path.stat()
                stamp.append(FileStamp(path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(stamp)


def installation_choices(
    default_model: str, default_size: str, visible: tuple[str, ...], preload: tuple[str, ...] = ()
) -> ApplyChoices:
    """A function that applies the settings `images.default_model`, `images.default_size` and `images.visible` to a
    catalogue.

    It raises SettingsInvalid if a model is not in the catalogue (those of `images.preload` too), or if the default
    model is hidden.
    """

    def apply(catalogue: Catalogue) -> Catalogue:
        unknown = [
            name for name in (*visible, *preload, default_model) if name and name not in catalogue.models
        ]
        if unknown:
            raise SettingsInvalid(
                f"images: {', '.join(unknown)} is not in the catalogue, which has {', '.join(catalogue.models)}."
            )
        default = default_model or catalogue.default_model
        hidden = frozenset(catalogue.models) - set(visible) if visible else frozenset()
        if default in hidden:
            raise SettingsInvalid(f"images.visible does not list the default model {default!r}.")
        try:
            size = Size.parse(default_size) if default_size else None
        except ValueError as error:
            raise SettingsInvalid(f"images.default_size: {error}.") from error
        return replace(catalogue, default_model=default, default_size=size, hidden=hidden)

    return apply
