"""The places for LLM requests: one key does not take all of them."""

from __future__ import annotations

import contextlib

import pytest

from app import Container
from errors import QueueFull
from tests.conftest import MakeApp


def test_a_key_leaves_places_for_llm_requests_to_other_keys(make_app: MakeApp) -> None:
    container: Container = make_app(llm__max_requests=8).extensions["easel"]
    forwarder = container.forwarder
    container.gate.add_key("a", ["draw"], {})
    with contextlib.ExitStack() as held:
        for _ in range(8):  # there is only one key
            held.enter_context(forwarder.admission("a"))
    container.gate.add_key("b", ["draw"], {})
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(forwarder.admission("a"))
        with pytest.raises(QueueFull, match="6 LLM requests of this key"):
            held.enter_context(forwarder.admission("a"))
        for _ in range(2):
            held.enter_context(forwarder.admission("b"))
        with pytest.raises(QueueFull, match="8 LLM requests are already"):
            held.enter_context(forwarder.admission("c"))
        assert forwarder.running == 8
    assert forwarder.running == 0
