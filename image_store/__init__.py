"""Keeps images as files in one folder, which several processes share, and evicts the least recently used."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from atomic_file import write_atomic
from errors import (
    EaselError,
    FavouritesFull,
    ImageNotFound,
    IndexUnavailable,
    StoreFull,
    StoreUnwritable,
)
from image_store.index import ImageIndex
from image_store.names import Extension, image_name, is_image, mime_and_etag, temporary_name
from image_store.neighbours import IndexedNeighbours
from image_store.records import (
    Change,
    Cursor,
    ImageFacts,
    ImageFilter,
    ImagePage,
    ImageRecord,
)
from image_store.retention import Limits, NoNeighbours, Retention
from state_files import ensure_folder
from system_errors import DISK_FULL, shortage_in, write_error

__all__ = [
    "Change",
    "Cursor",
    "ImageFacts",
    "ImageFilter",
    "ImageIndex",
    "ImagePage",
    "ImageRecord",
    "ImageStore",
    "KeptImage",
    "StoredImage",
    "image_name",
    "is_image",
]

_LOCK_TIMEOUT_S = 2.0
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

    With an `index`, what is known of each image is written to it, and long prompts count for `max_bytes`. There are
    favourites then, which are never evicted, not even if the disk is full: beside them there are at most the two latest
    images if they alone exceed a limit. An image is kept and can be opened even if the index cannot be written; it is listed
    later.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_count: int,
        max_bytes: int,
        min_age_s: float = 3600.0,
        clock: Callable[[], float] = time.time,
        index: ImageIndex | None = None,
        make_thumbnail: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """`make_thumbnail`: a small copy of a picture, as a WebP."""
        self.directory = directory
        self._max_count, self._max_bytes = max_count, max_bytes
        self._clock = clock
        self._index, self._make_thumbnail = index, make_thumbnail
        self._beside = None if index is None else IndexedNeighbours(directory, index)
        self._retention = Retention(
            directory, Limits(max_count, max_bytes, min_age_s), clock, self._beside or NoNeighbours()
        )

    def sweep_in_background(self) -> None:
        """Evict in a thread of this process from now on, so that `keep` does not wait for it. For each worker of a
        server, after the fork. If the disk is full, `keep` evicts by itself all the same."""
        self._retention.start()

    def keep(
        self, data: bytes, extension: Extension, facts: ImageFacts | None = None, name: str = ""
    ) -> KeptImage:
        """Keep a picture under a new name. `facts`: how it was made, for the index. `name`: a new one from
        `image_name`, "": it gets one.

        Raises StoreFull if the disk is full and evicting expired images did not help, or if the picture alone is
        larger than `max_bytes` (it would exceed the limit or be evicted at once); StoreUnwritable if the folder is not
        writable; TooManyFiles and OutOfMemory. Leaves no file behind if it fails.
        """
        name = name or image_name(extension)
        if len(data) > self._max_bytes:
            raise StoreFull(
                f"The picture has {len(data)} bytes, but `image_store.max_mb` allows only {self._max_bytes} bytes "
                "for all images together.",
                size_bytes=len(data),
                max_bytes=self._max_bytes,
            )
        facts = facts or ImageFacts()
        counted = len(data)
        if self._index is not None:
            counted += self._index.bytes_for(facts)
            self._require_room(self._index, 1, counted, "A picture of these cannot be kept beside them.")
        created = self._clock()
        try:
            self._write_with_eviction(name, data)
        except OSError as error:
            raise write_error(error, "the image store", StoreUnwritable) from error
        # First, so that a sweep that follows from the tally finds it in the index.
        if self._index is not None and not self._index.add(name, len(data), created, facts):
            self._retention.wake()
        self._retention.record_keep(name, counted)
        return KeptImage(name, len(data), _mime_and_etag(name)[0])

    def totals(self) -> tuple[int, int] | None:
        """How many images there are, and their bytes; None before the first sweep, and during one. Reads one small file."""
        return self._retention.totals()

    def open(self, name: str) -> StoredImage:
        """Read the image and make it the most recently used one. Raises ImageNotFound, also for every name that `keep`
        cannot have created; StoreUnwritable if the folder cannot be read."""
        mime, etag = _mime_and_etag(name)
        return StoredImage(name, self._open(name, self._clock()), mime, etag)

    def _open(self, name: str, used_at: float | None) -> bytes:
        try:
            return _read_and_touch(self.directory / name, used_at)
        except OSError as error:
            if error.errno in _NOT_FOUND:
                self._forget(name)
                raise _not_found(name) from error
            raise shortage_in(error) or StoreUnwritable(
                f"The folder of the image store cannot be read: {error.strerror}."
            ) from error

    def _forget(self, name: str) -> None:
        """Remove an image from the index whose file somebody has removed."""
        if self._index is not None and not os.path.lexists(self.directory / name):
            with suppress(EaselError):
                if self._index.get(name) is not None:
                    self._index.remove([name])

    # --- the index ---------------------------------------------------------------------------------

    @property
    def index(self) -> ImageIndex:
        """Raises IndexUnavailable if this store has none."""
        if self._index is None:
            raise IndexUnavailable("This image store has no index.", retry_after_s=None)
        return self._index

    def page(self, selected: ImageFilter, *, limit: int, after: Cursor | None = None) -> ImagePage:
        """As `ImageIndex.page`."""
        with self._noticing_loss():
            return self.index.page(selected, limit=limit, after=after)

    def find(self, name: str) -> ImageRecord:
        """The image of this name. Raises ImageNotFound and IndexUnavailable."""
        with self._noticing_loss():
            record = self.index.get(name) if is_image(name) else None
        if record is None:
            raise _not_found(name)
        return record

    def thumbnail(self, name: str) -> StoredImage:
        """A small copy of the image, which is made when it is first asked for. Does not count as a use of the image. Raises
        what `open` and `make_thumbnail` raise."""
        _, etag = _mime_and_etag(name)
        if self._beside is None or self._make_thumbnail is None:
            raise _not_found(name)
        data = self._beside.thumbnails.get(name, lambda: self._read(name), self._make_thumbnail)
        return StoredImage(name, data, "image/webp", f"{etag}-thumbnail")

    def set_favourite(self, name: str, is_favourite: bool, *, share: float = 1.0) -> ImageRecord:
        """Let the image never be evicted, or again. `share`: of each limit, which all favourites together may use. Raises
        ImageNotFound; FavouritesFull if they would exceed that; StoreFull or StoreUnwritable if it cannot be marked;
        IndexUnavailable."""
        record = self.find(name)
        if self._beside is None or record.is_favourite == is_favourite:
            return record
        if is_favourite:
            counted = record.size_bytes + self.index.bytes_for(record.facts)
            self._require_room(self.index, 1, counted, "This image cannot be one more.", share)
        try:
            with self._retention.locked(_LOCK_TIMEOUT_S):
                if not (self.directory / name).exists():
                    raise _not_found(name)
                if is_favourite:
                    self._beside.marks.mark(name)
                else:
                    self._beside.marks.unmark(name)
        except Timeout as error:
            raise IndexUnavailable("Images are being evicted at the moment; try again.") from error
        except OSError as error:
            raise write_error(error, "the image store", StoreUnwritable) from error
        changed = self.index.set_favourite(name, is_favourite)
        if changed is None:
            raise _not_found(name)
        return changed

    def delete(self, name: str) -> None:
        """Remove the image with its thumbnail and all that is known of it. Raises ImageNotFound; StoreUnwritable if the file
        cannot be removed; IndexUnavailable if only what is known of it cannot: calling it again does."""
        self.find(name)
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.directory / name)
        except OSError as error:
            raise write_error(error, "the image store", StoreUnwritable) from error
        if self._beside is not None:
            self._beside.removed(name)
        self.index.remove([name])
        self._retention.recount()
        if self._retention.has_thread:
            self._retention.wake()
        else:
            self.index.scrub()

    def same_as(self, data: bytes, owner: str | None) -> str | None:
        """The name of an image of `owner` (None: of anybody) with exactly these bytes; None if there is none, or if the
        index cannot be read."""
        if self._index is None:
            return None
        with suppress(EaselError, OSError):
            for name in self._index.of_size(len(data), owner):
                if self._read(name) == data:
                    return name
        return None

    def _require_room(self, index: ImageIndex, count: int, size: int, what: str, share: float = 1.0) -> None:
        """Raises FavouritesFull if so many images and bytes would exceed `share` of a limit together with the favourites."""
        try:
            favourites, favourite_bytes = index.favourites()
        except IndexUnavailable:
            return
        if not favourites or (
            favourites + count <= self._max_count * share
            and favourite_bytes + size <= self._max_bytes * share
        ):
            return
        if share < 1:
            what = f"Favourites of this caller may use {share:.0%} of that. {what}"
        raise FavouritesFull(
            f"The {favourites} favourites have {favourite_bytes} bytes together, and are never evicted; "
            f"`image_store.max_count` allows {self._max_count} images, and `image_store.max_mb` {self._max_bytes} bytes. "
            f"{what} Make some no favourites or delete them, or raise the limit.",
            favourites=favourites,
            favourite_bytes=favourite_bytes,
            max_count=self._max_count,
            max_bytes=self._max_bytes,
        )

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """If the block finds that the index was lost, it is made again from the files soon."""
        yield
        if self._beside is not None and self._beside.must_read:
            self._retention.wake()

    def _read(self, name: str) -> bytes:
        """The image, without making it the most recently used one. Raises as `open`."""
        return self._open(name, None)

    # --- files -------------------------------------------------------------------------------------

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


def _read_and_touch(path: Path, used_at: float | None) -> bytes:
    # O_NONBLOCK, because opening a pipe that has an image's name would block the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if used_at is not None:
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
