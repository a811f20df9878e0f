"""The benchmark runs and measures everything. No test depends on how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.throughput import QUICK_MAX_ENTRY_S

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
"""Only so that a run that hangs ends: on a busy machine a quick one takes minutes."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The printed report of one quick run, and its raw numbers."""
    path = tmp_path_factory.mktemp("bench") / "numbers.json"
    result = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(path.read_text("utf-8"))


def test_a_quick_run_measures_everything_and_the_values_are_positive(run):
    _, results = run
    for name in ("latency", "throughput", "compile", "start", "gpu", "streams", "keys", "engines"):
        values = list(numbers(results[name]))
        assert values
        assert all(value > 0 for key, value in values if key not in MAY_BE_ZERO), (name, values)
    entries = {(e["size"], e["render_ms"] > 0, e["clients"]): e for e in results["throughput"]}
    assert entries.keys() >= {
        (64, has_render, clients) for has_render in (False, True) for clients in (1, 8, 32)
    }
    for (_, has_render, clients), entry in entries.items():
        if has_render or clients <= 8:
            assert "routes" in entry
        else:  # a slow machine leaves out what would take long, and says so
            assert "routes" in entry or entry["expected_s"] > QUICK_MAX_ENTRY_S
    assert results["compile"]["catalogue"]["models"] == 100
    assert results["compile"]["own_folder"]["files"] == 100
    assert results["compile"]["shipped"]["models"] > 50
    assert results["compile"]["shipped"]["proved"] == 10
    assert (
        results["compile"]["shipped"]["load_s"]["median"] < results["compile"]["shipped"]["prove_s"]["median"]
    )
    if sys.platform == "linux":
        assert len(results["memory"]["workers"]) == 2
        assert all(10 < worker["pss_mb"] <= worker["rss_mb"] for worker in results["memory"]["workers"])


def test_the_report_shows_each_measured_value_beside_its_target(run):
    report, results = run
    lines = [line for line in report.splitlines() if "target: at " in line]
    # Several engines say nothing about Easel on a machine whose CPU is used up.
    has_free_cpu = any(entry["busy"] < 0.8 for entry in results["engines"])
    assert len(lines) == (21 if sys.platform == "linux" else 18) + has_free_cpu
    assert all(line.endswith(("met", "NOT MET")) for line in lines)
    assert "if the proofs of 10 models were not kept" in report


def test_llm_streams_are_complete_on_every_route_and_keep_their_rate(run):
    _, results = run
    conversation = results["conversation"]
    routes = {"direct", "gateway", "gateway, lease"}
    assert set(conversation.pop("busy")) == routes - {"direct"}
    assert all(set(measured) == routes for measured in conversation.values())
    for name in routes:
        # At most the rate of the server, however busy the machine is.
        assert 0 < conversation["load"][name]["tokens_per_s"] <= 32 * 50 * 1.1
        assert conversation["many"][name]["median"] > 0
        if name != "direct" and sys.platform == "linux":
            assert conversation["load"][name]["cpu_s_per_1000"] > 0
            assert conversation["upload"][name]["peak_mb"] >= 0


def test_every_route_gives_the_same_picture_of_each_size(run):
    _, results = run
    for entry in results["latency"].values():
        assert set(entry["pixels"]) == set(entry["routes"]) >= {"direct", "direct, WebSocket", "gateway"}
        assert all(route["same_pixels"] for route in entry["pixels"].values())
        if sys.platform == "linux":
            assert all(route["wire_bytes"] > route["png_bytes"] for route in entry["pixels"].values())


# A difference, a setting, or a time too short for the clock that measures it.
MAY_BE_ZERO = {
    "added_s",
    "render_ms",
    "client",
    "gateway",
    "engine",
    "compile_s",
    "finish_s",
    "queued_s",
    "fetch_s",
}


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in the results, with the key that contains it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, key)
    elif value is not None:
        yield key, value
