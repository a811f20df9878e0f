"""A disk that is really full, and one that is really read-only. Where no disk can be mounted, the file size limit in
test_store_processes.py stands for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOUNT = 'mount -t tmpfs -o size=2m none "$1" && shift && exec "$@"'


def on_a_small_disk(place: Path, *command: str) -> str:
    """Runs `command` where `place` is a disk of 2 MB, which goes away with the process."""
    for unshare in (["unshare", "--mount", "--map-root-user"], ["unshare", "--mount"]):
        try:
            subprocess.run(
                [*unshare, "sh", "-c", MOUNT, "sh", str(place), "true"], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        done = subprocess.run(
            [*unshare, "sh", "-c", MOUNT, "sh", str(place), *command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
    pytest.skip(
        "NOT TESTED HERE: a full disk, as this user may mount none (needs unshare and root or user namespaces)"
    )


def test_a_full_disk_is_store_full_until_expired_images_make_room(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("disk_that_fills.py"))
    told = json.loads(on_a_small_disk(tmp_path, sys.executable, "-W", "error", script, str(tmp_path)))
    assert told["kept"] in (7, 8)  # of 256 kB each; the disk counts in pages
    assert told["full"] == "The disk that keeps the images has no room: No space left on device."
    assert told["errno"] == errno.ENOSPC
    assert told["whole"]
    assert told["leftovers"] == []
    assert told["names"]
    assert told["evicted"] == [1, 2]  # the first was opened since
    assert told["late"]
    assert told["again"] == [True, True]
    assert told["readable"]
    assert told["read_only"] == ["StoreUnwritable", True]
