"""Keeps images as files in one folder, which several processes share, and evicts the least recently used."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atomic_file import write_atomic
from errors import ImageNotFound, StoreFull, StoreUnwritable
from image_store.names import Extension, image_name, mime_and_etag, temporary_name
from image_store.retention import Limits, Retention
from state_files import ensure_folder
from system_errors import DISK_FULL, shortage_in, write_error

__all__ = ["ImageStore", "KeptImage", "StoredImage"]

_NOT_FOUND = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}


@dataclass(frozen=True)
class KeptImage:
    """The name of an image that was just kept, with its size and type."""

    name: str
    size_bytes: int
    mime: str


@dataclass(frozen=True)
class StoredImage:
    """An image with its bytes, so that it can be sent even if it is evicted meanwhile. `etag` has no quotes."""

    name: str
    data: bytes
    mime: str
    etag: str

    @property
    def length(self) -> int:
        """The number of bytes."""
        return len(self.data)


class ImageStore:
    """The images in one folder. The least recently used are evicted first. Safe for many threads and processes, also
    after a fork. Accesses the disk only in `keep` and `open`. `clock` returns seconds since the epoch.

    Guarantees:

    - A name belongs to a complete image or to nothing: an image is written to a temporary file, flushed to the disk,
      then renamed. (The rename itself is not flushed: a power cut may lose the images of the last seconds, but only
      completely.)
    - Whenever no `keep` and no sweep is running, the images have at most `max_bytes`, or are the two latest ones if
      those alone are larger. Meanwhile there may be one more image for each running `keep`, and those that are kept
      while a thread sweeps (see `sweep_in_background`). A process that dies in `keep` may leave an image uncounted
      until the next sweep.
    - There are at most `max_count` images (or those two), except that this limit evicts no image that was kept or
      opened in the last `min_age_s` seconds. Only the byte limit does.
    - The byte limit evicts an image only if it and the images used after it do not fit into 15/16 of the limit. So an
      image whose response is still being sent stays, if the limit is large enough for all responses of that moment.
    - With more than 500 images, a sweep continues to 1/16 below the limit that it enforces. The folder is read only if
      a limit is exceeded, every 512 keeps or 15 minutes, and after the first keep of a process.
    - Files that the store did not name are never opened and never removed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_count: int,
        max_bytes: int,
        min_age_s: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._retention = Retention(directory, Limits(max_count, max_bytes, min_age_s), clock)

    def sweep_in_background(self) -> None:
        """Evict in a thread of this process from now on, so that `keep` does not wait for it. For each worker of a
        server, after the fork. If the disk is full, `keep` evicts by itself all the same."""
        self._retention.start()

    def keep(self, data: bytes, extension: Extension) -> KeptImage:
        """Keep a picture under a new name.

        Raises StoreFull if the disk is full and evicting expired images did not help, or if the picture alone is
        larger than `max_bytes` (it would exceed the limit or be evicted at once); StoreUnwritable if the folder is not
        writable; TooManyFiles and OutOfMemory. Leaves no file behind if it fails.
        """
        name = image_name(extension)
        if len(data) > self._max_bytes:
            raise StoreFull(
                f"The picture has {len(data)} bytes, but `image_store.max_mb` allows only {self._max_bytes} bytes "
                "for all images together.",
                size_bytes=len(data),
                max_bytes=self._max_bytes,
            )
        try:
            self._write_with_eviction(name, data)
        except OSError as error:
            raise write_error(error, "the image store", StoreUnwritable) from error
        self._retention.record_keep(name, len(data))
        return KeptImage(name, len(data), _mime_and_etag(name)[0])

    def totals(self) -> tuple[int, int] | None:
        """How many images there are, and their bytes; None before the first sweep, and during one. Reads one small file."""
        return self._retention.totals()

    def open(self, name: str) -> StoredImage:
        """Read the image and make it the most recently used one. Raises ImageNotFound, also for every name that `keep`
        cannot have created; StoreUnwritable if the folder cannot be read."""
        mime, etag = _mime_and_etag(name)
        try:
            data = _read_and_touch(self.directory / name, self._clock())
        except OSError as error:
            if error.errno in _NOT_FOUND:
                raise _not_found(name) from error
            raise shortage_in(error) or StoreUnwritable(
                f"The folder of the image store cannot be read: {error.strerror}."
            ) from error
        return StoredImage(name, data, mime, etag)

    def _write_with_eviction(self, name: str, data: bytes) -> None:
        try:
            self._write(name, data)
        except NotADirectoryError:
            ensure_folder(self.directory, 0o700)
            self._write(name, data)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self._retention.free_space(len(data))
            self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(
            self.directory / name,
            data,
            temporary=self.directory / temporary_name(),
            mode=0o600,
            folder_mode=0o700,
            modified=self._clock,
            flush=True,
        )


def _read_and_touch(path: Path, used_at: float) -> bytes:
    # O_NONBLOCK, because opening a pipe that has an image's name would block the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with suppress(OSError):  # images can still be read if the disk has become read-only
            os.utime(descriptor, (used_at, used_at))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _mime_and_etag(name: str) -> tuple[str, str]:
    result = mime_and_etag(name)
    if result is None:
        raise _not_found(name)
    return result


def _not_found(name: str) -> ImageNotFound:
    return ImageNotFound(f"There is no image named {name[:80]!a}.")
