"""The files beside an image: the mark of a favourite and the thumbnail. They are removed with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from atomic_file import write_atomic
from image_store.names import is_image
from state_files import ensure_folder, read_file

_THUMBNAIL_SUFFIX = ".webp"
_LOCKS = 16


class Favourites:
    """Empty files that mark favourites, so that they are known even if the index is lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> frozenset[str]:
        """All marks, perhaps also of images that are gone. Raises OSError if they cannot be read: then nothing may be
        evicted."""
        try:
            return frozenset(filter(is_image, os.listdir(self._folder)))
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    def is_marked(self, name: str) -> bool:
        """Whether this one is marked now."""
        return os.path.lexists(self._folder / name)

    def mark(self, name: str) -> None:
        """Raises OSError."""
        path = self._folder / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        try:
            os.close(os.open(path, flags, 0o600))
        except (FileNotFoundError, NotADirectoryError):
            ensure_folder(self._folder, 0o700)
            os.close(os.open(path, flags, 0o600))

    def unmark(self, name: str) -> None:
        """Raises OSError."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._folder / name)


class Thumbnails:
    """Small copies of the images in `images`, made when they are first asked for. `make`: a small copy of a picture."""

    def __init__(self, folder: Path, images: Path) -> None:
        self._folder, self._images = folder, images
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def get(self, name: str, read: Callable[[], bytes], make: Callable[[bytes], bytes]) -> bytes:
        """The thumbnail of an image; `read` returns the image. Threads that ask for the same one make it once. Raises what
        they raise; a thumbnail that cannot be stored is returned all the same."""
        path = self._folder / (name + _THUMBNAIL_SUFFIX)
        if (data := _read(path)) is not None and os.path.lexists(self._images / name):
            return data
        with self._locks[hash(name) % _LOCKS]:
            if (data := _read(path)) is not None and os.path.lexists(self._images / name):
                return data
            data = make(read())
            with suppress(OSError):
                self._store(path, data)
                if not os.path.lexists(self._images / name):
                    self.remove(name)  # deleted meanwhile
            return data

    def _store(self, path: Path, data: bytes) -> None:
        ensure_folder(self._folder, 0o700)
        write_atomic(path, data, mode=0o600, folder_mode=0o700)

    def names(self) -> list[str]:
        """The images that have one, perhaps also some that are gone. Raises OSError."""
        try:
            found = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = [name.removesuffix(_THUMBNAIL_SUFFIX) for name in found if name.endswith(_THUMBNAIL_SUFFIX)]
        return [name for name in names if is_image(name)]

    def remove(self, name: str) -> None:
        """Raises OSError."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._folder / (name + _THUMBNAIL_SUFFIX))


def _read(path: Path) -> bytes | None:
    try:
        return read_file(path) or None
    except OSError:
        return None
