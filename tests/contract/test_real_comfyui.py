"""Reports whether the contract tests ran on a real ComfyUI."""

from __future__ import annotations

import os

import pytest
from raw_comfyui import REAL

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
