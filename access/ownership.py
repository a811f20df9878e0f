"""Files that root makes in the folder of another user, such as with `sudo easel keys add`, are for that user's server."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def keep_owner(*paths: Path) -> None:
    """Give files that this process has made to the owner of their folder, if this process is root's. Never raises."""
    if os.geteuid() != 0:
        return
    for path in paths:
        with contextlib.suppress(OSError):
            folder = os.stat(path.parent)
            if folder.st_uid != 0:
                os.chown(path, folder.st_uid, folder.st_gid, follow_symlinks=False)
