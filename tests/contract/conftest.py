"""The engines that the contract tests run on: always the sketch engine, and the real ComfyUI whose URL
EASEL_TEST_COMFYUI gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_comfyui import REAL, Comfy, new_id, options, sampled

from engine import Engine

NODES = Path(__file__).resolve().parents[2] / "schemas" / "nodes.json"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_url" in metafunc.fixturenames:
        sketch = "slow sketch" if "endless" in metafunc.fixturenames else "sketch"
        engines = [sketch, *(["comfyui"] if os.environ.get(REAL) else [])]
        metafunc.parametrize("engine_url", engines, indirect=True, scope="session")


@pytest.fixture(scope="session")
def engine_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "comfyui":
        yield os.environ[REAL].rstrip("/")
        return
    from sketch import SketchProcess

    render_ms = 600_000 if request.param == "slow sketch" else 0
    files = {"checkpoints": ["other.safetensors", "sd15.safetensors"]}
    with SketchProcess(nodes=NODES, files=files, render_ms=render_ms) as sketch:
        yield sketch.url


@pytest.fixture(scope="session")
def comfy(engine_url: str) -> Iterator[Comfy]:
    comfy = Comfy(engine_url)
    yield comfy
    comfy.close()


@pytest.fixture(scope="session")
def is_newer(comfy: Comfy) -> bool:
    """Whether the engine is a ComfyUI since about 0.26, such as 0.33.0: it has a route that cancels one job. It also
    leaves out some steps of the progress, decodes pictures by PyAV, and describes missing classes and cycles in more
    detail. Neither 0.3.64, 0.8.0 nor the sketch engine does."""
    return comfy.post(f"/api/jobs/{new_id()}/cancel").status_code == 200


@pytest.fixture(scope="session")
def object_info(comfy: Comfy) -> dict[str, Any]:
    return comfy.get("/object_info").json()


@pytest.fixture(scope="session")
def checkpoint(object_info: dict[str, Any]) -> str:
    """A small checkpoint that the engine has: one of Stable Diffusion 1.5 if possible."""
    names = options(object_info["CheckpointLoaderSimple"], "ckpt_name")
    small = [name for name in names if ("sd15" in name or "v1-5" in name) and "inpaint" not in name]
    return (small or names)[0]


@pytest.fixture
def endless(checkpoint: str) -> dict[str, Any]:
    """A job that samples until it is cancelled."""
    return sampled(checkpoint, steps=10_000)


@pytest.fixture
def engine(engine_url: str) -> Iterator[Engine]:
    engine = Engine(engine_url)
    yield engine
    engine.close()
