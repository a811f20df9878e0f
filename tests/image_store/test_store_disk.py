"""A disk that is really full, and one that is really read-only. If no disk can be mounted, test_store_processes.py
still tests the file size limit."""

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


def on_a_small_disk(mount_point: Path, *command: str) -> str:
    """Runs `command` with a disk of 2 MB mounted at `mount_point`, which disappears with the process."""
    for unshare in (["unshare", "--mount", "--map-root-user"], ["unshare", "--mount"]):
        try:
            subprocess.run(
                [*unshare, "sh", "-c", MOUNT, "sh", str(mount_point), "true"], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        process = subprocess.run(
            [*unshare, "sh", "-c", MOUNT, "sh", str(mount_point), *command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=180,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout
    pytest.skip(
        "NOT TESTED HERE: a full disk, because this user cannot mount one (needs unshare, and root or user namespaces)"
    )


def test_a_full_disk_is_store_full_until_images_expire_and_are_evicted(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("fill_disk.py"))
    results = json.loads(on_a_small_disk(tmp_path, sys.executable, "-W", "error", script, str(tmp_path)))
    assert results["kept"] in (7, 8)  # of 256 kB each; the disk allocates whole pages
    assert results["full"] == "The disk of the image store is full: No space left on device."
    assert results["errno"] == errno.ENOSPC
    assert results["complete"]
    assert results["leftovers"] == []
    assert results["names"]
    assert results["evicted"] == [1, 2]  # the first was opened after them
    assert results["late"]
    assert results["again"] == [True, True]
    assert results["readable"]
    assert results["read_only"] == ["StoreUnwritable", True]
