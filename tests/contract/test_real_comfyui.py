"""Reports whether the contract tests ran on a real ComfyUI."""

from __future__ import annotations

import os
import re

import pytest
from raw_comfyui import REAL

from detection import find_services
from engine import Engine


def test_the_contract_tests_run_on_a_real_comfyui_too() -> None:
    url = os.environ.get(REAL)
    if not url:
        pytest.skip(
            f"NO REAL COMFYUI WAS TESTED: set {REAL}, or run make test-comfyui URL=http://127.0.0.1:8188"
        )
    engine = Engine(url)
    assert not engine.stats().is_sketch
    engine.close()


def test_a_real_comfyui_is_found_with_its_version_and_folders() -> None:
    url = os.environ.get(REAL)
    if not url:
        pytest.skip(f"{REAL} is not set")
    service = find_services([url])[url]
    assert service is not None
    assert service.comfyui is not None
    assert service.kind == "comfyui"
    assert re.match(r"\d+\.\d+", service.version)
    assert {"checkpoints", "loras", "vae"} <= set(service.comfyui.folders)
    assert service.comfyui.arguments[0].endswith("main.py")
