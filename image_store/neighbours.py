"""Keeps the index, the marks of favourites and the thumbnails in step with the files of images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from errors import EaselError
from image_store.index import ImageIndex
from image_store.retention import ImageEntry
from image_store.side_files import Favourites, Thumbnails

log = logging.getLogger("easel.images")

_RETRY_S = 1.0
"""How soon what could not be written is tried again"""


class IndexedNeighbours:
    """Implements `Neighbours`. One per process."""

    def __init__(self, folder: Path, index: ImageIndex) -> None:
        self._folder = folder
        self._index = index
        self.marks = Favourites(folder / "favourites")
        self.thumbnails = Thumbnails(folder / "thumbnails", folder)
        self._read_generation = -1

    @property
    def must_read(self) -> bool:
        """Whether the index was lost, or not compared with the folder since this process began."""
        return self._read_generation != self._index.generation

    def favourites(self) -> frozenset[str]:
        return self.marks.names()

    def removed(self, name: str) -> None:
        with suppress(OSError):
            self.thumbnails.remove(name)
        with suppress(OSError):
            self.marks.unmark(name)

    def swept(self, images: Sequence[ImageEntry], evicted: Sequence[str], favourites: frozenset[str]) -> None:
        try:
            self._index.remove(evicted)
            self._index.reconcile({image.name: (image.size, image.used_at) for image in images}, favourites)
            self._read_generation = self._index.generation
        except EaselError as error:
            log.warning("the image index is not up to date: %s", error.message)
        self._remove_orphans({image.name for image in images}, favourites)

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
        return self.must_read and self._folder.is_dir(), _RETRY_S if self._index.is_scrub_due else None
