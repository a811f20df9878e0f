"""Which engine is used: the configured one, a ComfyUI on its default port, or the sketch engine until a ComfyUI was
seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_comfyui import FakeComfyUI

from engine import EngineSelector
from errors import EngineUnreachable

SKETCH = "http://127.0.0.1:1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Installation:
    """A state directory, a ComfyUI on the probed port that can be stopped, and the sketch engine's address."""

    def __init__(self, state: Path, comfy: FakeComfyUI) -> None:
        self.state = state
        self.comfy = comfy
        self.clock = Clock()
        self.sketch: str | None = SKETCH

    def selector(self, configured: str | None = None) -> EngineSelector:
        return EngineSelector(
            configured,
            sketch_url=lambda: self.sketch,
            state_dir=self.state,
            probe_url=self.comfy.url,
            clock=self.clock,
        )

    def start_comfyui(self) -> None:
        self.comfy.call(self.comfy.listen())

    def stop_comfyui(self) -> None:
        self.comfy.call(self.comfy.crash())


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """No ComfyUI answers at first."""
    with FakeComfyUI() as comfy:
        installation = Installation(tmp_path / "var", comfy)
        installation.stop_comfyui()
        yield installation
        installation.start_comfyui()


def test_a_configured_engine_is_used_even_if_another_one_answers(installation: Installation) -> None:
    installation.start_comfyui()
    assert installation.selector("http://gpu.example:8188/").current().url == "http://gpu.example:8188"
    assert not installation.state.exists()
    installation.stop_comfyui()


def test_without_a_comfyui_the_sketch_engine_is_used_at_its_current_address(
    installation: Installation,
) -> None:
    selector = installation.selector()
    assert selector.current().url == SKETCH
    installation.sketch = "http://127.0.0.1:2"
    assert selector.current().url == "http://127.0.0.1:2"


def test_without_any_engine_it_raises_engine_unreachable(installation: Installation) -> None:
    installation.sketch = None
    with pytest.raises(EngineUnreachable, match="no engine is configured"):
        installation.selector().current()


def test_a_comfyui_that_answers_is_used_and_recorded(installation: Installation) -> None:
    installation.start_comfyui()
    assert installation.selector().current().url == installation.comfy.url
    assert json.loads((installation.state / "engine-seen.json").read_text()) == {
        "url": installation.comfy.url
    }
    installation.stop_comfyui()


def test_a_comfyui_that_starts_later_is_found_after_the_probe_interval(installation: Installation) -> None:
    selector = installation.selector()
    assert selector.current().url == SKETCH
    installation.start_comfyui()
    installation.clock.now += 4.9
    assert selector.current().url == SKETCH
    installation.clock.now += 0.2
    assert selector.current().url == installation.comfy.url
    installation.stop_comfyui()


def test_a_seen_comfyui_that_is_away_is_not_replaced_by_the_sketch_engine_and_is_used_once_it_is_back(
    installation: Installation,
) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.stop_comfyui()
    installation.clock.now += 5.1
    for each in (selector, installation.selector()):
        with pytest.raises(EngineUnreachable, match="does not go back to the sketch engine"):
            each.current()
    installation.start_comfyui()
    assert selector.current().url == installation.comfy.url
    installation.stop_comfyui()


def test_a_comfyui_seen_by_another_process_counts_as_seen(installation: Installation) -> None:
    selector = installation.selector()
    assert selector.current().url == SKETCH
    installation.start_comfyui()
    assert installation.selector().current().url == installation.comfy.url
    installation.stop_comfyui()
    with pytest.raises(EngineUnreachable):
        selector.current()


def test_a_sketch_engine_on_the_probed_port_is_not_a_comfyui(installation: Installation) -> None:
    installation.comfy.sketch = True
    installation.start_comfyui()
    assert installation.selector().current().url == SKETCH
    installation.stop_comfyui()


def test_a_seen_engine_that_is_slow_to_answer_is_still_used(installation: Installation) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.comfy.slow_stats = threading.Event()
    installation.clock.now += 5.1
    assert selector.current().url == installation.comfy.url
    installation.comfy.slow_stats.set()
    installation.stop_comfyui()


def test_one_caller_probes_while_the_others_use_the_last_result(installation: Installation) -> None:
    selector = installation.selector()
    selector.current()
    installation.start_comfyui()
    installation.comfy.slow_stats = threading.Event()
    installation.clock.now += 5.1
    with ThreadPoolExecutor() as pool:
        prober = pool.submit(selector.current)
        installation.comfy.wait_for(lambda: installation.comfy.stats_requests)
        assert selector.current().url == SKETCH
        installation.comfy.slow_stats.set()
        prober.result()
    assert installation.comfy.stats_requests == 1
    installation.stop_comfyui()


def test_each_engine_is_created_once(installation: Installation) -> None:
    selector = installation.selector(SKETCH)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(engine) for engine in pool.map(lambda _: selector.current(), range(64))}) == 1
