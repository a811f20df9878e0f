"""Says loudly whether a real ComfyUI was held to the contract."""

from __future__ import annotations

import os

import pytest
from conftest import REAL

from engine import Engine


def test_a_real_comfyui_is_held_to_the_contract_too() -> None:
    url = os.environ.get(REAL)
    if not url:
        pytest.skip(
            f"NO REAL COMFYUI WAS TESTED: set {REAL}, or run make test-comfyui URL=http://127.0.0.1:8188"
        )
    engine = Engine(url)
    assert not engine.stats().is_sketch
    engine.close()
