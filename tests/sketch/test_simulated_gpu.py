"""A sketch engine with a simulated GPU: its model takes memory, and does not fit beside what others hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sketch import SketchProcess
from tests.sketch.sketch_client import FILES, NODES, Client, graph
from tests.waiting import wait_until

TOTAL, MODEL = 24_000_000_000, 8_000_000_000


def write(path: Path, others: int) -> None:
    path.write_text(json.dumps({"total": TOTAL, "others": others, "model": MODEL}))


@pytest.fixture
def gpu(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.json"
    write(path, 0)
    return path


@pytest.fixture
def url(gpu: Path) -> Iterator[str]:
    with SketchProcess(nodes=NODES, files=FILES, gpu=gpu) as sketch:
        yield sketch.url


def device(url: str) -> dict[str, Any]:
    return requests.get(f"{url}/system_stats", timeout=30).json()["devices"][0]


def test_a_model_takes_memory_from_its_first_job_until_it_is_freed(url: str, gpu: Path) -> None:
    assert (device(url)["type"], device(url)["vram_free"]) == ("cuda", TOTAL)
    assert Client(url).draw(graph()).files
    assert device(url)["vram_free"] == TOTAL - MODEL
    assert device(url)["torch_vram_total"] == MODEL
    write(gpu, 1_000_000_000)
    assert device(url)["vram_free"] == TOTAL - MODEL - 1_000_000_000
    requests.post(f"{url}/free", json={"unload_models": True, "free_memory": True}, timeout=30)
    wait_until(lambda: device(url)["vram_free"] == TOTAL - 1_000_000_000)


def test_a_job_fails_while_others_hold_the_memory_of_its_model(url: str, gpu: Path) -> None:
    write(gpu, TOTAL - MODEL + 1)
    result = Client(url).draw(graph())
    [failure] = result.data_of("execution_error")
    assert failure["exception_type"].endswith("OutOfMemoryError")
    assert "8.0 GB needed" in failure["exception_message"]
    assert device(url)["torch_vram_total"] == 0
    write(gpu, TOTAL - MODEL)
    assert Client(url).draw(graph()).files
