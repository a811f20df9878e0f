"""The catalogue in force while its files change under it: a good edit is taken up without a restart, a bad one is
refused and the last good catalogue goes on. What was accepted is kept in the state directory, so that a worker born
after a bad edit serves the same as its elders."""

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
    """What tells one state of a file from another."""

    name: str
    inode: int
    changed_ns: int
    size: int


Stamp = tuple[FileStamp, ...]
"""Equal stamps, equal files."""

Choose = Callable[[Catalogue], Catalogue]
"""Puts this installation's own choices (default model, hidden models) into a fresh catalogue, or refuses it."""


class LiveCatalogue:
    """`current()` gives the catalogue in force. Safe for threads; each process has its own."""

    def __init__(
        self,
        paths: SourcePaths,
        kept: Path,
        *,
        choose: Choose = lambda catalogue: catalogue,
        settle_s: float = 0.2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads and checks the files. Raises CatalogueInvalid: a server does not start with a broken catalogue.

        `kept` is the file for the last good texts; `settle_s` is how long a file must lie untouched before it
        counts, so that an editor's half-written file is never read. `clock` gives seconds since the epoch.
        """
        self._paths, self._kept, self._choose = paths, kept, choose
        self._settle_s, self._clock = settle_s, clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._seen = self._stamp()
        self.error: EaselError | None = None
        """Why the files as they are now are not in force, or None."""
        self.since = int(time.time())
        """Unix time at which the catalogue in force was taken up"""
        self._catalogue = self._accept(read_sources(paths))

    def current(self) -> Catalogue:
        """The catalogue in force. Costs a look at the files' times; never raises for a bad edit."""
        if self._pid != os.getpid():
            self._after_fork()
        stamp = self._stamp()
        if stamp != self._seen and self._lock.acquire(blocking=False):
            try:
                self._look_again(stamp)
            finally:
                self._lock.release()
        return self._catalogue

    def _look_again(self, stamp: Stamp) -> None:
        if self._is_being_written(stamp):
            return
        self._seen = stamp
        try:
            self._catalogue = self._accept(read_sources(self._paths))
        except EaselError as error:
            self._refuse(error)
        except Exception as error:
            # Whatever a text can do to a parser, it is the edit that is refused, not the request that came upon it.
            self._refuse(
                CatalogueInvalid(
                    f"{self._paths.catalogue.name}: {type(error).__name__}: {shorten(str(error), 300)}"
                )
            )
        else:
            self.error, self.since = None, int(time.time())
            log.info("the catalogue changed; %d models are in force", len(self._catalogue.models))

    def _is_being_written(self, stamp: Stamp) -> bool:
        # A time in the future is a clock that was set, not a file that is being written.
        youngest = max((entry.changed_ns for entry in stamp), default=0) / 1e9
        return 0 <= self._clock() - youngest < self._settle_s

    def _refuse(self, error: EaselError) -> None:
        self.error = error
        log.error("the catalogue changed and is refused; the last good one goes on: %s", error.message)

    def _accept(self, sources: Sources) -> Catalogue:
        catalogue = self._choose(load_catalogue(sources))
        self._keep(sources)
        return catalogue

    def _keep(self, sources: Sources) -> None:
        # A state directory that cannot be written only costs the memory of the last good catalogue.
        with contextlib.suppress(OSError):
            write_atomic(self._kept, sources.dump().encode())

    def _after_fork(self) -> None:
        """A worker forked from the master holds what was in force when the server started. If the files have since
        changed for the bad, what its elders took up in between is in the kept texts."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        if self._stamp() == self._seen:
            return
        try:
            self._catalogue = self._choose(load_catalogue(Sources.load(self._kept.read_text("utf-8"))))
        except (OSError, ValueError, TypeError, EaselError) as error:
            log.warning("the kept catalogue cannot be used: %s", error)

    def _stamp(self) -> Stamp:
        stamp: list[FileStamp] = []
        for path in self._paths.files():
            with contextlib.suppress(OSError):
                state = path.stat()
                stamp.append(FileStamp(path.name, state.st_ino, state.st_mtime_ns, state.st_size))
        return tuple(stamp)


def installation_choices(
    default_model: str, default_size: str, visible: tuple[str, ...], preload: tuple[str, ...] = ()
) -> Choose:
    """What the settings `images.default_model`, `images.default_size` and `images.visible` make of a catalogue.

    The function raises SettingsInvalid for a model that the catalogue has not (those of `images.preload` too), or a
    default that is hidden.
    """

    def choose(catalogue: Catalogue) -> Catalogue:
        unknown = [
            name for name in (*visible, *preload, default_model) if name and name not in catalogue.models
        ]
        if unknown:
            raise SettingsInvalid(
                f"images: {', '.join(unknown)} is not in the catalogue; there is {', '.join(catalogue.models)}."
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

    return choose
