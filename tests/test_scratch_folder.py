"""Temporary folders of processes that end, and of those that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from scratch_folder import ScratchFolder
from tests.conftest import ROOT


def test_a_folder_exists_inside_the_context_only(tmp_path: Path) -> None:
    with ScratchFolder("test-", tmp_path) as folder:
        (folder / "file").write_text("a")
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one_and_those_in_use_are_not(
    tmp_path: Path,
) -> None:
    program = "import os, sys; from scratch_folder import ScratchFolder as S; S('test-', __import__('pathlib').Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=180, check=False)
    (abandoned,) = tmp_path.iterdir()
    foreign = tmp_path / "test-of-somebody-else"
    foreign.mkdir()
    with ScratchFolder("test-", tmp_path) as first:
        for folder in (abandoned, first):
            os.utime(folder / ".in-use", (time.time() - 60, time.time() - 60))
        with ScratchFolder("test-", tmp_path) as second:
            assert set(tmp_path.iterdir()) == {foreign, first, second}


def test_a_folder_that_was_disowned_stays(tmp_path: Path) -> None:
    scratch = ScratchFolder("test-", tmp_path)
    scratch.disown()
    assert scratch.path.exists()
