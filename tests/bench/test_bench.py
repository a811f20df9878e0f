"""The benchmark runs and measures everything; how fast anything is, is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HANGS_S = 120
"""A quick run takes a tenth of it; on a busy machine it may take more and is still right."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What one quick run printed, and its raw numbers."""
    numbers = tmp_path_factory.mktemp("bench") / "numbers.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", numbers],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(numbers.read_text("utf-8"))


def test_a_quick_run_has_every_figure_and_each_is_positive(run):
    _, numbers = run
    for name in ("latency", "throughput", "compile", "start", "gpu", "streams"):
        values = list(figures(numbers[name]))
        assert values
        assert all(value > 0 for path, value in values if path not in MAY_BE_ZERO), (name, values)
    assert {(entry["render_ms"] > 0, entry["clients"]) for entry in numbers["throughput"]} == {
        (rendering, clients) for rendering in (False, True) for clients in (1, 8, 32)
    }
    assert numbers["compile"]["catalogue"]["models"] == 1000
    if sys.platform == "linux":
        assert len(numbers["memory"]["workers"]) == 2
        assert all(10 < worker["pss_mb"] <= worker["rss_mb"] for worker in numbers["memory"]["workers"])


def test_the_report_puts_the_measured_figures_beside_the_aims(run):
    report, _ = run
    lines = [line for line in report.splitlines() if "aim: at " in line]
    assert len(lines) == (11 if sys.platform == "linux" else 10)
    assert all(line.endswith(("met", "NOT MET")) for line in lines)


# A difference, a setting, or too short for the clock that it is read from.
MAY_BE_ZERO = {"added_s", "render_ms", "client", "gateway", "engine", "compile_s", "finish_s", "queued_s"}


def figures(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in the results, with the key it stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from figures(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from figures(inner, name)
    elif value is not None:
        yield name, value
