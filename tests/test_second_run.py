"""Tests that fail are run again, alone, by `make test`; only a few, and only once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.second_run import MAX_FAILED, run_again

PYTEST = [sys.executable, "-m", "pytest", "-q"]


def status_of_both_runs(folder: Path, text: str) -> int:
    (folder / "pytest.ini").write_text("[pytest]\n")
    file = folder / "test_it.py"
    file.write_text(text)
    command = [*PYTEST, "--rootdir", str(folder), "-c", str(folder / "pytest.ini")]
    first = subprocess.run([*command, str(file)], cwd=folder, check=False, capture_output=True)
    return run_again(first.returncode, folder / ".pytest_cache", ["env", "-C", str(folder), *command])


UNLUCKY = "import os, pathlib\ndef test_once():\n    seen = pathlib.Path('seen').exists()\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("def test_it():\n    pass\n", 0),
        (f"{UNLUCKY}    pathlib.Path('seen').touch()\n    assert seen\n", 0),
        ("def test_it():\n    assert False\n", 1),
        (
            f"{UNLUCKY}    pathlib.Path('seen').touch()\n    assert seen\ndef test_it():\n    assert False\n",
            1,
        ),
        ("import nothing_of_this_name\n", 2),
    ],
)
def test_only_a_test_that_passes_alone_is_forgiven(tmp_path: Path, text: str, status: int) -> None:
    assert status_of_both_runs(tmp_path, text) == status


def test_many_failures_are_not_forgiven(tmp_path: Path) -> None:
    unlucky = f"{UNLUCKY}    pathlib.Path('seen').touch()\n    assert False\n"
    many = "".join(
        unlucky.replace("test_once", f"test_{number}")
        .replace("assert False", "assert seen")
        .replace("'seen'", f"'{number}'")
        for number in range(MAX_FAILED + 1)
    )
    assert status_of_both_runs(tmp_path, many) == 1
