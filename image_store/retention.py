"""Decides which images are evicted, and tracks the size of the folder without reading it at every keep. Knows file
names, sizes and times of last use; never reads an image.

Not a cache library with a database, because the folder is the only truth: a lost or damaged tally is counted again.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from filelock import FileLock, Timeout

from image_store.names import is_image, is_temporary
from state_files import is_file_or_missing, read_file, set_aside

log = logging.getLogger("easel.images")

SMALL_STORE = 500
"""Up to this many images, a sweep stops at the limits, because reading such a folder costs almost nothing."""
MARGIN_DIVISOR = 16
"""In a larger store, a sweep continues to 1/16 below the limit, so that not every keep has to sweep."""
MAX_NEW_KEEPS = 512
"""After this many keeps the next one sweeps."""
MAX_TALLY_AGE_S = 900.0
"""A tally older than this is counted again, because other programs may have added or removed files."""
ABANDONED_AFTER_S = 600.0
"""A temporary file that was not written to for this long belongs to a process that died."""
CLOCK_TOLERANCE_S = 60.0
"""A time in the future by up to this much is normal; by more, the clock was set back."""
_LOCK_TIMEOUT_S = 2.0
"""for `free_space`"""
_RETRY_S = 60.0
"""After an error in the thread that sweeps"""


@dataclass(frozen=True)
class Limits:
    """At most `max_count` images and `max_bytes` bytes. The count limit evicts only images that were not used for
    `min_age_s` seconds."""

    max_count: int
    max_bytes: int
    min_age_s: float


class ImageEntry(NamedTuple):
    """An image that a sweep found; `used_at` is its time of last use in seconds since the epoch. `index_bytes`: what is kept
    of it beside its file and counts for the limits."""

    name: str
    size: int
    used_at: float
    index_bytes: int = 0

    @property
    def counted(self) -> int:
        """Its bytes for the limits."""
        return self.size + self.index_bytes


@dataclass(frozen=True)
class Tally:
    """The count and size in bytes of all images: what the last sweep counted, plus the keeps since then (`new_keeps`).

    Before the time `due`, another sweep for the count limit would find nothing to evict.
    """

    count: int
    size: int
    new_keeps: int
    swept_at: float
    due: float


def sweep_margin(limit: int, count: int) -> int:
    """How far below `limit` a sweep of a store with `count` images continues."""
    return limit // MARGIN_DIVISOR if count > SMALL_STORE else 0


NO_NAMES: frozenset[str] = frozenset()


def images_to_evict(
    images: Iterable[ImageEntry],
    limits: Limits,
    now: float,
    protected: str = "",
    favourites: frozenset[str] = NO_NAMES,
) -> list[ImageEntry]:
    """The images to evict so that the limits are kept, least recently used first.

    The byte limit evicts as many as necessary; the count limit evicts no image that was used in the last `min_age_s`
    seconds. The most recently used image, the one named `protected` and the `favourites` always stay.
    """
    queue = sorted(images, key=lambda image: image.used_at)
    count, size = len(queue), sum(image.counted for image in queue)
    max_count, max_bytes = limits.max_count, limits.max_bytes
    if count > max_count:
        max_count -= sweep_margin(max_count, len(queue))
    if size > max_bytes:
        max_bytes -= sweep_margin(max_bytes, len(queue))
    evicted = []
    for image in queue[:-1]:
        is_old = now - image.used_at >= limits.min_age_s
        if not (size > max_bytes or (count > max_count and is_old)):
            break
        if image.name != protected and image.name not in favourites:
            evicted.append(image)
            count, size = count - 1, size - image.counted
    return evicted


def expired_images(
    images: Iterable[ImageEntry],
    limits: Limits,
    now: float,
    total_size: int,
    favourites: frozenset[str] = NO_NAMES,
) -> list[ImageEntry]:
    """Images older than the minimum age, but no favourites, least recently used first, until they reach `total_size` bytes
    together."""
    expired: list[ImageEntry] = []
    for image in sorted(images, key=lambda image: image.used_at):
        if now - image.used_at < limits.min_age_s or total_size <= 0:
            break
        if image.name in favourites:
            continue
        expired.append(image)
        total_size -= image.size
    return expired


def parse_tally(text: str) -> Tally | None:
    """The totals of a tally file; None if it is incomplete, damaged, or has no line of a finished sweep."""
    count = size = new_keeps = 0
    swept: tuple[float, float] | None = None
    if not text.endswith("\n"):
        return None
    try:
        for line in text.splitlines():
            match line.split(" "):
                case ["kept", bytes_kept]:
                    count, size, new_keeps = count + 1, size + int(bytes_kept), new_keeps + 1
                case ["swept", images, total, at, due]:
                    count, size, swept = count + int(images), size + int(total), (float(at), float(due))
                case _:
                    return None
    except ValueError:
        return None
    return Tally(count, size, new_keeps, *swept) if swept else None


class Neighbours(Protocol):
    """What is kept beside the files of images, and follows them."""

    def favourites(self) -> frozenset[str]:
        """The names of images that are never evicted. Raises OSError."""

    def sizes(self) -> Mapping[str, int]:
        """Name -> bytes that an image takes beside its file and that count for the limits; those without any may be left
        out. Never raises."""

    def removed(self, name: str) -> None:
        """The file of this image was removed. Never raises."""

    def swept(self, images: Sequence[ImageEntry], evicted: Sequence[str], favourites: frozenset[str]) -> None:
        """The folder was read: these images are in it, without the evicted ones. Never raises."""

    def look_after(self) -> tuple[bool, float | None]:
        """Do what is left to do; in the thread that sweeps. Whether the folder must be read now, and after how many seconds
        it must be called again at the latest."""


class NoNeighbours:
    """Nothing is kept beside images."""

    def favourites(self) -> frozenset[str]:
        return NO_NAMES

    def sizes(self) -> Mapping[str, int]:
        return {}

    def removed(self, name: str) -> None:
        pass

    def swept(self, images: Sequence[ImageEntry], evicted: Sequence[str], favourites: frozenset[str]) -> None:
        pass

    def look_after(self) -> tuple[bool, float | None]:
        return False, None


class Retention:
    """Keeps a folder within its limits, together with all other processes that use it.

    The file `.tally` records the content of the folder: a line `swept COUNT BYTES AT DUE` from each sweep, and a line
    `kept BYTES` that each keep appends without a lock. A sweep (under `.evict.lock`) first empties the tally, then
    reads the folder, so an image that is kept meanwhile may be counted twice but is never missed. A process that dies
    between its keep and its line leaves one image uncounted until the next sweep. Every process sweeps with its first
    keep, and then every 15 minutes or 512 keeps. In a process that called `start`, a thread does that; in others, such
    as a command, `record_keep` does.
    """

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        clock: Callable[[], float],
        neighbours: Neighbours | None = None,
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._clock = clock
        self._neighbours = neighbours or NoNeighbours()
        self._tally_path = directory / ".tally"
        self._swept_by_pid = 0  # the process that has swept and may use the tally; not a child forked from it
        self._sweeping_pid = 0  # the process whose thread sweeps; not a child forked from it
        self._has_kept = threading.Event()
        self._latest = ""

    def start(self) -> None:
        """Sweep in a thread from now on, so that no request waits for it. Call it in each worker after the fork."""
        self._has_kept = threading.Event()
        threading.Thread(target=self._run, name="image-sweeps", daemon=True).start()
        self._sweeping_pid = os.getpid()

    def _run(self) -> None:
        wait_s: float | None = 0.0
        while True:
            has_kept = self._has_kept.wait(wait_s)
            self._has_kept.clear()
            wait_s = _RETRY_S
            try:
                if has_kept:
                    self._sweep_if_due()
                must_read, wait_s = self._neighbours.look_after()
                if must_read:
                    self.recount()
                    self._sweep_if_due()
            except Exception:
                # Such as too little memory. Without this thread the folder would grow without a limit.
                log.exception("cannot evict images")

    def wake(self) -> None:
        """Let the thread, if there is one, do what is left to do."""
        self._has_kept.set()

    @property
    def has_thread(self) -> bool:
        """Whether a thread of this process sweeps."""
        return self._sweeping_pid == os.getpid()

    def recount(self) -> None:
        """Let the next sweep read the folder, because files were removed or added otherwise than by `record_keep`."""
        self._swept_by_pid = 0

    def record_keep(self, name: str, size: int) -> None:
        """Count a new image of `size` bytes, with those beside its file, and see that what exceeds the limits is evicted.
        Never raises, because the image is already kept."""
        try:
            self._append(f"kept {size}\n")
        except OSError as error:
            self._give_up(error)
            return
        self._latest = name
        if self._sweeping_pid == os.getpid():
            self._has_kept.set()
        else:
            self._sweep_if_due()

    def _sweep_if_due(self) -> None:
        """Evict what exceeds the limits, but not the latest image.

        A process that does not get the lock leaves the sweep to its holder, who checks again after releasing the lock.
        """
        try:
            due = self._sweep_is_due()
            while due and self._sweep(
                lambda images, now, favourites: images_to_evict(
                    images, self._limits, now, protected=self._latest, favourites=favourites
                )
            ):
                due = self._exceeds_limits(self._tally())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """The next keep sweeps, because the tally may be wrong."""
        self._swept_by_pid = 0
        log.warning("cannot evict images: %s", error)

    def free_space(self, size: int) -> None:
        """Evict expired images of twice `size` bytes together, if there are that many; for a full disk."""
        try:
            self._sweep(
                lambda images, now, favourites: expired_images(
                    images, self._limits, now, 2 * size, favourites
                ),
                lock_timeout_s=_LOCK_TIMEOUT_S,
            )
        except OSError as error:
            log.warning("cannot evict images: %s", error)

    def _sweep_is_due(self) -> bool:
        tally = self._tally()
        if tally is None or tally.new_keeps > MAX_NEW_KEEPS or self._swept_by_pid != os.getpid():
            return True
        is_recent = -CLOCK_TOLERANCE_S <= self._clock() - tally.swept_at <= MAX_TALLY_AGE_S
        return not is_recent or self._exceeds_limits(tally)

    def _exceeds_limits(self, tally: Tally | None) -> bool:
        """Whether images kept since the last sweep exceed a limit. Without new images, the last sweep has already
        evicted what it could. Without a tally, another process is sweeping."""
        if tally is None or not tally.new_keeps:
            return False
        exceeds_count = tally.count > self._limits.max_count and self._clock() >= tally.due
        return exceeds_count or tally.size > self._limits.max_bytes

    def totals(self) -> tuple[int, int] | None:
        """Count and bytes as the tally has them."""
        tally = self._tally()
        return None if tally is None else (tally.count, tally.size)

    def _tally(self) -> Tally | None:
        try:
            return parse_tally(read_file(self._tally_path).decode("ascii"))
        except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
            return None

    def _append(self, line: str) -> None:
        if not is_file_or_missing(self._tally_path):
            set_aside(self._tally_path, IsADirectoryError("it is not a file"))
        tally = os.open(self._tally_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            # One short write: with O_APPEND, lines of two processes do not mix. A line that a full disk cuts off makes
            # the tally invalid.
            if os.write(tally, line.encode("ascii")) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(tally)

    def _sweep(
        self,
        select: Callable[[list[ImageEntry], float, frozenset[str]], list[ImageEntry]],
        *,
        lock_timeout_s: float = 0.0,
    ) -> bool:
        """Count the images and evict those that `select` returns; False if another process holds the lock."""
        try:
            with self.locked(lock_timeout_s):
                now = self._clock()
                self._empty_tally()
                images = self._without_future_times(self._images(), now)
                favourites = self._neighbours.favourites()
                evicted = {
                    image.name for image in select(images, now, favourites) if self._remove(image.name)
                }
                left = [image for image in images if image.name not in evicted]
                self._append(self._swept_line(left, favourites, now))
        except Timeout:
            return False
        self._swept_by_pid = os.getpid()
        self._neighbours.swept(left, sorted(evicted), favourites)
        if evicted:
            log.info("evicted %d of %d images", len(evicted), len(images))
        return True

    def locked(self, timeout_s: float) -> FileLock:
        """Nothing is evicted in a block with this. Raises Timeout, and OSError."""
        return FileLock(self._directory / ".evict.lock", timeout=timeout_s, mode=0o600)

    def _empty_tally(self) -> None:
        with suppress(FileNotFoundError):
            os.truncate(self._tally_path, 0)  # not removed, so that no process appends to a file that is gone

    def _swept_line(self, images: list[ImageEntry], favourites: frozenset[str], now: float) -> str:
        times = sorted(image.used_at for image in images if image.name not in favourites)
        margin = min(sweep_margin(self._limits.max_count, len(times)), len(times) - 1)
        due = (times[margin] if times else now) + self._limits.min_age_s
        return f"swept {len(images)} {sum(image.counted for image in images)} {now!r} {due!r}\n"

    def _images(self) -> list[ImageEntry]:
        """Every image in the folder. Removes abandoned temporary files and ignores files that are not the store's."""
        images, sizes = [], self._neighbours.sizes()
        for name, status in self._files():
            if is_image(name):
                images.append(ImageEntry(name, status.st_size, status.st_mtime, sizes.get(name, 0)))
            # The kernel sets the times of temporary files, so they are compared with the system clock. A time far in
            # the future means that the file was left before the clock was set back.
            elif is_temporary(name) and abs(time.time() - status.st_mtime) > ABANDONED_AFTER_S:
                self._unlink(name)
        return images

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                try:  # not `suppress`, which takes as long as the rest for tens of thousands of files
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield entry.name, status

    def _without_future_times(self, images: list[ImageEntry], now: float) -> list[ImageEntry]:
        """After the clock was set back: set times of use in the future to the present, in the same order. Otherwise new
        images would be the least recently used ones, and old images would not expire until the clock has caught up."""
        future = sorted(
            (image for image in images if image.used_at > now + CLOCK_TOLERANCE_S),
            key=lambda image: image.used_at,
        )
        if not future:
            return images
        log.warning("the clock was set back: %d images were used in the future", len(future))
        # One second ago, so that images that are kept or opened meanwhile still count as used later.
        times = {image.name: now - 1.0 - rank * 1e-5 for rank, image in enumerate(reversed(future))}
        for name, used_at in times.items():
            with suppress(OSError):
                os.utime(self._directory / name, (used_at, used_at))
        return [image._replace(used_at=times.get(image.name, image.used_at)) for image in images]

    def _remove(self, name: str) -> bool:
        """Remove an image and what is kept beside it."""
        if not self._unlink(name):
            return False
        self._neighbours.removed(name)
        return True

    def _unlink(self, name: str) -> bool:
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            # Without its name, which is all that somebody needs to see it.
            log.warning("cannot evict an image: %s", error.strerror)
            return False
        return True
