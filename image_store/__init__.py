"""Keeps images in one folder that several processes share: names, whole files, how long they stay."""

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
from errors import EaselError, ImageNotFound, StoreFull, StoreUnwritable
from image_store.names import Extension, image_name, mime_and_etag, temporary_name
from image_store.retention import Limits, Retention

__all__ = ["ImageStore", "KeptImage", "StoredImage"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}


@dataclass(frozen=True)
class KeptImage:
    """An image that was just kept, under `name`."""

    name: str
    size_bytes: int
    mime: str


@dataclass(frozen=True)
class StoredImage:
    """An image with its bytes, so that evicting it cannot hurt the answer. `etag` comes without quotes."""

    name: str
    data: bytes
    mime: str
    etag: str

    @property
    def length(self) -> int:
        """The number of bytes."""
        return len(self.data)


class ImageStore:
    """The images of one folder, least recently used first out. Safe for many threads and processes, also after a
    fork; touches the disk only when used. `clock` gives seconds since the epoch.

    What is guaranteed:

    - A name holds a whole image or nothing: written beside it, flushed to the disk, then renamed. (The rename itself
      is not flushed: a power cut may take the images of the last seconds, whole.)
    - Whenever no keep is under way, the images hold at most `max_bytes`, or the two latest of them if those alone are
      more. Meanwhile there are at most as many images more as there are keeps. A process that died in the middle of
      keeping may leave one uncounted until the next sweep.
    - There are at most `max_count` images (or those two), except that none leaves for this limit that was kept or
      opened in the last `min_age_s` seconds. Only the byte limit takes these.
    - An image leaves for the byte limit only if it and those used after it do not fit into 15/16 of it: so one whose
      answer is still being sent stays, if the limit has room for all answers of that moment.
    - With more than 500 images a sweep goes on to 1/16 below the limit it enforces. A keep reads the folder only when a
      limit is passed, once each 512 keeps or 15 minutes, and once after a process started.
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

    def keep(self, data: bytes, extension: Extension) -> KeptImage:
        """Keeps a picture under a new name.

        Raises StoreFull when the disk is full and evicting expired images did not help, or when the picture alone
        is larger than `max_bytes` (kept, it could only break the limit or be evicted at once); StoreUnwritable when
        the folder cannot be written. Then nothing of it stays behind.
        """
        name = image_name(extension)
        if len(data) > self._max_bytes:
            raise StoreFull(
                f"The picture has {len(data)} bytes, more than the {self._max_bytes} that all images together may "
                "have; raise `image_store.max_mb`.",
                size_bytes=len(data),
                max_bytes=self._max_bytes,
            )
        try:
            self._place(name, data)
        except OSError as error:
            raise _cannot_keep(error) from error
        self._retention.kept(name, len(data))
        return KeptImage(name, len(data), _known(name)[0])

    def open(self, name: str) -> StoredImage:
        """The image of this name, which is now the most recently used one. Raises ImageNotFound, also for any name
        that `keep` cannot have given; StoreUnwritable when the folder cannot be read."""
        mime, etag = _known(name)
        try:
            data = _read_and_touch(self.directory / name, self._clock())
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise _no_image(name) from error
            raise StoreUnwritable(f"The folder of the images cannot be read: {error.strerror}.") from error
        return StoredImage(name, data, mime, etag)

    def _place(self, name: str, data: bytes) -> None:
        try:
            self._write(name, data)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._retention.make_room(len(data))
            self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(
            self.directory / name,
            data,
            temporary=self.directory / temporary_name(),
            mode=0o600,
            folder_mode=0o700,
            modified=self._clock(),
            flush=True,
        )


def _read_and_touch(path: Path, used: float) -> bytes:
    # O_NONBLOCK: a pipe under an image's name must not hold the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with suppress(OSError):  # a disk that became read-only still serves
            os.utime(descriptor, (used, used))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _known(name: str) -> tuple[str, str]:
    known = mime_and_etag(name)
    if known is None:
        raise _no_image(name)
    return known


def _no_image(name: str) -> ImageNotFound:
    return ImageNotFound(f"There is no image named {name[:80]!a}.")


def _cannot_keep(error: OSError) -> EaselError:
    if error.errno in _NO_ROOM:
        return StoreFull(f"The disk that keeps the images has no room: {error.strerror}.")
    return StoreUnwritable(f"The folder that keeps the images cannot be written: {error.strerror}.")
