"""Which images have to leave, and how that is known without reading the folder at each keep. Knows file names,
sizes and times of use; never what is in a file."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from image_store.names import is_image, is_temporary

log = logging.getLogger(__name__)

SMALL_STORE = 500
"""Up to so many images a sweep stops at the limits themselves; reading such a folder costs next to nothing."""
MARGIN = 16
"""In a larger store a sweep goes on to 1/16 below the limit, so that not each keep has to sweep."""
MOST_NOTES = 512
"""So many keeps may be noted in the tally before a sweep counts the folder afresh."""
RESWEEP_S = 900.0
"""A tally older than this is counted afresh: files may have come or gone without us."""
ABANDONED_S = 600.0
"""A temporary file that nobody has written to for so long belongs to a process that died."""
SLACK_S = 60.0
"""Times this far in the future are ordinary; beyond it the clock was set back."""


@dataclass(frozen=True)
class Limits:
    """At most `max_count` images and `max_bytes` bytes; `min_age_s` seconds without use before the count counts."""

    max_count: int
    max_bytes: int
    min_age_s: float


@dataclass(frozen=True)
class Seen:
    """An image as a sweep found it; `used` is its time of last use, in seconds since the epoch."""

    name: str
    size: int
    used: float


@dataclass(frozen=True)
class Tally:
    """What the last sweep left and the keeps since then add up to.

    `due` is the time before which another sweep for the count alone would find nothing to evict.
    """

    count: int
    size: int
    notes: int
    swept_at: float
    due: float


def margin(limit: int, count: int) -> int:
    """How far below `limit` a sweep of a store with `count` images goes."""
    return limit // MARGIN if count > SMALL_STORE else 0


def leaving(images: Iterable[Seen], limits: Limits, now: float, spare: str = "") -> list[Seen]:
    """The images that have to leave, least recently used first.

    The byte limit takes what it needs; the count limit takes nothing that was used in the last `min_age_s`
    seconds. The most recently used image and the one named `spare` always stay.
    """
    queue = sorted(images, key=lambda image: image.used)
    count, size = len(queue), sum(image.size for image in queue)
    most = limits.max_count - (margin(limits.max_count, len(queue)) if count > limits.max_count else 0)
    room = limits.max_bytes - (margin(limits.max_bytes, len(queue)) if size > limits.max_bytes else 0)
    gone = []
    for image in queue[:-1]:
        old = now - image.used >= limits.min_age_s
        if not (size > room or (count > most and old)):
            break
        if image.name != spare:
            gone.append(image)
            count, size = count - 1, size - image.size
    return gone


def expired(images: Iterable[Seen], limits: Limits, now: float, wanted: int) -> list[Seen]:
    """Images past the minimum age, least recently used first, until they make up `wanted` bytes."""
    gone: list[Seen] = []
    for image in sorted(images, key=lambda image: image.used):
        if now - image.used < limits.min_age_s or wanted <= 0:
            break
        gone.append(image)
        wanted -= image.size
    return gone


def read_tally(text: str) -> Tally | None:
    """The sum of a tally file; None when in doubt: torn, or without the line that ends a sweep."""
    count = size = notes = 0
    swept: tuple[float, float] | None = None
    if not text.endswith("\n"):
        return None
    try:
        for line in text.splitlines():
            match line.split(" "):
                case ["kept", one]:
                    count, size, notes = count + 1, size + int(one), notes + 1
                case ["swept", images, total, at, due]:
                    count, size, swept = count + int(images), size + int(total), (float(at), float(due))
                case _:
                    return None
    except ValueError:
        return None
    return Tally(count, size, notes, *swept) if swept else None


class Retention:
    """Keeps one folder within its limits, together with every other process that does.

    `.tally` in the folder says what there is: a line `swept COUNT BYTES AT DUE` that a sweep leaves, and a line
    `kept BYTES` that each keep appends without any lock. A sweep (under `.evict.lock`) first empties the tally,
    then reads the folder: what is kept meanwhile is counted twice at worst, never missed. A process that dies
    between its keep and its note leaves one image uncounted until the next sweep, of which every process does
    one with its first keep, and one each 15 minutes or 512 keeps.
    """

    def __init__(self, directory: Path, limits: Limits, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._limits = limits
        self._clock = clock
        self._tally_path = directory / ".tally"
        self._trusting_pid = 0  # the process that trusts the tally: not a child forked from it

    def kept(self, name: str, size: int) -> None:
        """Counts a new image and evicts what has to leave for it. Never raises: the image is kept already.

        Who does not get the lock leaves the sweep to its holder, who looks again after letting go of it.
        """
        try:
            self._append(f"kept {size}\n")
            due = self._sweep_is_due()
            while due and self._sweep(lambda images, now: leaving(images, self._limits, now, spare=name)):
                due = self._too_much(self._tally())
        except OSError as error:
            self._trusting_pid = 0
            log.warning("cannot evict images: %s", error)

    def make_room(self, size: int) -> None:
        """Evicts expired images worth twice `size` bytes, if there are such; for a disk that is full."""
        try:
            self._sweep(lambda images, now: expired(images, self._limits, now, 2 * size), patience_s=2.0)
        except OSError as error:
            log.warning("cannot evict images: %s", error)

    def _sweep_is_due(self) -> bool:
        tally = self._tally()
        if tally is None or tally.notes > MOST_NOTES or self._trusting_pid != os.getpid():
            return True
        counted_just_now = -SLACK_S <= self._clock() - tally.swept_at <= RESWEEP_S
        return not counted_just_now or self._too_much(tally)

    def _too_much(self, tally: Tally | None) -> bool:
        """Whether images kept since the last sweep are more than a limit allows. Without such, it did what it could;
        without a tally, another process is sweeping."""
        if tally is None or not tally.notes:
            return False
        too_many = tally.count > self._limits.max_count and self._clock() >= tally.due
        return too_many or tally.size > self._limits.max_bytes

    def _tally(self) -> Tally | None:
        try:
            return read_tally(self._tally_path.read_text("ascii"))
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def _append(self, line: str) -> None:
        tally = os.open(self._tally_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            # One short write: with O_APPEND the lines of two processes do not mix. What a full disk tears is no tally.
            if os.write(tally, line.encode("ascii")) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(tally)

    def _sweep(self, choose: Callable[[list[Seen], float], list[Seen]], *, patience_s: float = 0.0) -> bool:
        """Counts the folder and evicts what `choose` names; False if another process is at it."""
        try:
            with FileLock(self._directory / ".evict.lock", timeout=patience_s, mode=0o600):
                now = self._clock()
                self._empty_tally()
                images = self._reined_in(self._images(), now)
                gone = {image.name for image in choose(images, now) if self._unlink(image.name)}
                self._append(self._swept([image for image in images if image.name not in gone], now))
        except Timeout:
            return False
        self._trusting_pid = os.getpid()
        if gone:
            log.info("evicted %d of %d images", len(gone), len(images))
        return True

    def _empty_tally(self) -> None:
        with suppress(FileNotFoundError):
            os.truncate(self._tally_path, 0)  # the same file, so that no line is appended to one that is gone

    def _swept(self, images: list[Seen], now: float) -> str:
        used = sorted(image.used for image in images)
        gap = min(margin(self._limits.max_count, len(used)), len(used) - 1)
        due = (used[gap] if used else now) + self._limits.min_age_s
        return f"swept {len(images)} {sum(image.size for image in images)} {now!r} {due!r}\n"

    def _images(self) -> list[Seen]:
        """Every image in the folder. Abandoned temporary files are removed; foreign files are left alone."""
        images = []
        for name, status in self._files():
            if is_image(name):
                images.append(Seen(name, status.st_size, status.st_mtime))
            # The kernel stamps these, so they go by its clock; one from the future was left before it was set back.
            elif is_temporary(name) and abs(time.time() - status.st_mtime) > ABANDONED_S:
                self._unlink(name)
        return images

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield entry.name, status

    def _reined_in(self, images: list[Seen], now: float) -> list[Seen]:
        """After the clock was set back: stamps what was used in the future as used just now, in the same order,
        or new images would be the least recently used and old ones young for as long as the clock lags."""
        future = sorted(
            (image for image in images if image.used > now + SLACK_S), key=lambda image: image.used
        )
        if not future:
            return images
        log.warning("the clock was set back: %d images were used in the future", len(future))
        # A second ago, so that what was kept or opened since then still counts as used later.
        stamps = {image.name: now - 1.0 - rank * 1e-5 for rank, image in enumerate(reversed(future))}
        for name, used in stamps.items():
            with suppress(OSError):
                os.utime(self._directory / name, (used, used))
        return [replace(image, used=stamps.get(image.name, image.used)) for image in images]

    def _unlink(self, name: str) -> bool:
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot evict %s: %s", name, error.strerror)
            return False
        return True
