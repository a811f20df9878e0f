"""The comparison of two commits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import Comparison, median_interval
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
"""Only so that a run that hangs ends: on a busy machine a quick one takes minutes."""
needs_git = pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="this is no git checkout"
)


def command(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Its temporary files are in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.compare", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_git
def test_a_quick_comparison_prints_every_value_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = command("HEAD", "--quick", folder=tmp_path)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    lines = [line for line in output.splitlines() if line.endswith("too few rounds")]
    assert len(lines) == (7 if sys.platform == "linux" else 5)
    assert list(tmp_path.glob("easel-bench*")) == []


@needs_git
def test_a_comparison_that_is_ended_early_removes_its_checkout(tmp_path: Path) -> None:
    process = command("HEAD", folder=tmp_path)
    wait_until(lambda: list(tmp_path.glob("easel-bench-checkout-*/easel/wsgi.py")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert list(tmp_path.glob("easel-bench*")) == []


@needs_git
def test_an_unknown_commit_is_an_error_that_names_it(tmp_path: Path) -> None:
    process = command("no-such-branch", folder=tmp_path)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "There is no commit 'no-such-branch'" in errors


@pytest.mark.parametrize(
    ("count", "skipped"),
    [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (20, 5), (100, 39)],  # tables of the sign test
)
def test_the_interval_of_a_median_leaves_out_as_many_values_as_the_sign_test(
    count: int, skipped: int
) -> None:
    values = [float(value) for value in range(count)]
    assert median_interval(values[::-1]) == (values[skipped], values[count - 1 - skipped])


@pytest.mark.parametrize(
    ("after", "more_is_better", "verdict"),
    [
        ([1.1, 1.2, 1.1, 1.3, 1.1, 1.2], False, "WORSE"),
        ([1.1, 1.2, 1.1, 1.3, 1.1, 1.2], True, "better"),
        ([0.8, 0.9, 0.8, 0.9, 0.7, 0.8], False, "better"),
        ([0.8, 0.9, 0.8, 0.9, 0.7, 0.8], True, "WORSE"),
        ([0.8, 1.2, 0.9, 1.1, 0.9, 1.3], False, "no difference"),
        ([1.01, 1.01, 1.01, 1.01, 1.01, 1.01], False, "no difference"),
        ([2.0, 2.0, 2.0, 2.0, 2.0], False, "too few rounds"),
    ],
)
def test_a_verdict_needs_ratios_that_agree(after: list[float], more_is_better: bool, verdict: str) -> None:
    comparison = Comparison("time", "ms", [1.0] * len(after), after, more_is_better)
    assert comparison.verdict == verdict
    assert verdict in comparison.line()
