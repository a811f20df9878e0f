"""Writes files atomically: other processes see either the old content or the complete new content."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomic(
    path: Path,
    data: bytes,
    *,
    temporary: Path | None = None,
    mode: int = 0o644,
    folder_mode: int = 0o777,
    modified: Callable[[], float] | None = None,
    flush: bool = False,
) -> None:
    """Replace `path` with `data` in one step, creating its folder if it is missing.

    `temporary` is the file in the same folder that is written first; a random hidden name if None. `modified` returns
    the modification time in Unix seconds; it is called when all is written, which may take long. With `flush` the call
    returns only after the bytes are on the disk, because a quota or a network disk may report only then that it is
    full. (The rename itself is not flushed.) Raises OSError and removes the temporary file if writing fails.
    """
    temporary = temporary or path.with_name(f".{uuid.uuid4().hex}.tmp")
    descriptor = _create(temporary, folder_mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            if flush:
                os.fsync(descriptor)
            if modified is not None:
                os.utime(descriptor, (time := modified(), time))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What file systems answer that have none, such as those of memory cards and some network disks"""


def create_atomic(
    path: Path, data: bytes, *, mode: int = 0o644, link: Callable[[Path, Path], None] = os.link
) -> None:
    """Write a new file in one step. Raises FileExistsError if there is a file of this name, which stays as it is; other
    OSErrors if writing fails. Without hard links, the file is empty for a moment. `link`: makes a hard link."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    write_atomic(temporary, data, mode=mode)
    try:
        link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _create(temporary: Path, folder_mode: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        return os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        temporary.parent.mkdir(mode=folder_mode, parents=True, exist_ok=True)
        return os.open(temporary, flags, 0o600)
