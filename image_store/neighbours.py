"""Keeps the index, the marks of favourites and the thumbnails in step with the files of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from errors import EaselError
from image_store.index import ImageIndex
from image_store.retention import ImageEntry
from image_store.side_files import Favourites, Thumbnails

log = logging.getLogger("easel.images")

_RETRY_S = 1.0
"""How soon what could not be written is tried again"""
_MAX_DOUBLINGS = 6
"""How often that time is doubled while the folder cannot be read; each time there is a line in the log"""


class IndexedNeighbours:
    """Implements `Neighbours`. One per process."""

    def __init__(self, folder: Path, index: ImageIndex) -> None:
        self._folder = folder
        self._index = index
        self.marks = Favourites(folder / "favourites")
        self.thumbnails = Thumbnails(folder / "thumbnails", folder)
        self._read_generation = -1
        self._waits = False
        """Whether another process was comparing when this one had to"""
        self._has_failed = False
        self._attempts = 0
        """How often the folder was to be read, and was not"""

    @property
    def must_read(self) -> bool:
        """Whether the index was lost, or not compared with the folder since this process began."""
        return self._read_generation != self._index.generation

    def favourites(self) -> frozenset[str]:
        return self.marks.names()

    def sizes(self) -> Mapping[str, int]:
        try:
            return self._index.sizes()
        except EaselError:
            return {}

    def removed(self, name: str) -> None:
        with suppress(OSError):
            self.thumbnails.remove(name)
        with suppress(OSError):
            self.marks.unmark(name)

    def swept(self, images: Sequence[ImageEntry], evicted: Sequence[str], favourites: frozenset[str]) -> None:
        self._attempts = 0
        try:
            self._index.remove(evicted)
            # Reading the heads of thousands of new files takes long, and once is enough.
            with self._comparing():
                files = {image.name: image.used_at for image in images}
                self._read_generation = self._index.reconcile(files, favourites, self.marks.is_marked)
            self._has_failed = False
        except Timeout:
            self._read_generation, self._waits = -1, True
            return
        except EaselError as error:
            self._has_failed = True
            log.warning("the image index is not up to date: %s", error.message)
        except OSError as error:
            self._has_failed = True
            log.warning("the image index is not up to date: %s", error.strerror)
        self._remove_orphans({image.name for image in images}, favourites)

    def _comparing(self) -> FileLock:
        """Raises Timeout while another process compares the index with the folder, and OSError."""
        return FileLock(self._folder / ".reconcile.lock", timeout=0, mode=0o600)

    def _another_compares(self) -> bool:
        if self._waits:
            try:
                with self._comparing():
                    self._waits = False
            except Timeout:
                return True
            except OSError:
                pass
        return False

    def _remove_orphans(self, names: set[str], favourites: frozenset[str]) -> None:
        """Remove what is left beside images that somebody has removed."""
        with suppress(OSError):
            for name in {*favourites, *self.thumbnails.names()} - names:
                if not (self._folder / name).exists():
                    self.removed(name)

    def look_after(self) -> tuple[bool, float | None]:
        try:
            if self._index.has_pending:
                self._index.flush()
            self._index.scrub()
        except EaselError:
            return False, _RETRY_S
        if self._another_compares():
            return False, _RETRY_S
        must_read = self.must_read and self._folder.is_dir()
        wait_s = _RETRY_S if self._index.is_scrub_due else None
        if must_read and not self._has_failed:
            wait_s = wait_s or _RETRY_S * 2 ** min(self._attempts, _MAX_DOUBLINGS)
            self._attempts += 1
        return must_read, wait_s
