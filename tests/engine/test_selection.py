"""Which engine is used: the configured one, a ComfyUI on its usual port, or the sketch engine until one was seen."""

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


class Place:
    """A state directory, a probed port and a sketch engine that one can take away."""

    def __init__(self, state: Path, comfy: FakeComfyUI) -> None:
        self.state = state
        self.comfy = comfy
        self.clock = Clock()
        self.sketch: str | None = SKETCH

    def choice(self, configured: str | None = None) -> EngineSelector:
        return EngineSelector(
            configured,
            sketch_url=lambda: self.sketch,
            state_dir=self.state,
            probe_url=self.comfy.url,
            clock=self.clock,
        )

    def comfy_comes(self) -> None:
        self.comfy.call(self.comfy.listen())

    def comfy_goes(self) -> None:
        self.comfy.call(self.comfy.die())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """No ComfyUI answers at first."""
    with FakeComfyUI() as comfy:
        place = Place(tmp_path / "var", comfy)
        place.comfy_goes()
        yield place
        place.comfy_comes()


def test_a_configured_engine_is_used_whatever_else_answers(place: Place) -> None:
    place.comfy_comes()
    assert place.choice("http://gpu.example:8188/").current().url == "http://gpu.example:8188"
    assert not place.state.exists()
    place.comfy_goes()


def test_without_any_comfyui_the_sketch_engine_is_used_at_its_present_address(place: Place) -> None:
    choice = place.choice()
    assert choice.current().url == SKETCH
    place.sketch = "http://127.0.0.1:2"
    assert choice.current().url == "http://127.0.0.1:2"


def test_without_a_sketch_engine_it_is_unreachable(place: Place) -> None:
    place.sketch = None
    with pytest.raises(EngineUnreachable, match="none is configured"):
        place.choice().current()


def test_a_comfyui_that_answers_is_used_and_remembered(place: Place) -> None:
    place.comfy_comes()
    assert place.choice().current().url == place.comfy.url
    assert json.loads((place.state / "engine-seen.json").read_text()) == {"url": place.comfy.url}
    place.comfy_goes()


def test_a_comfyui_that_comes_later_is_found_after_the_interval(place: Place) -> None:
    choice = place.choice()
    assert choice.current().url == SKETCH
    place.comfy_comes()
    place.clock.now += 4.9
    assert choice.current().url == SKETCH
    place.clock.now += 0.2
    assert choice.current().url == place.comfy.url
    place.comfy_goes()


def test_once_seen_there_are_no_sketches_any_more_but_the_engine_is_back_at_once(place: Place) -> None:
    place.comfy_comes()
    choice = place.choice()
    choice.current()
    place.comfy_goes()
    place.clock.now += 5.1
    for again in (choice, place.choice()):
        with pytest.raises(EngineUnreachable, match="draws no sketches"):
            again.current()
    place.comfy_comes()
    assert choice.current().url == place.comfy.url
    place.comfy_goes()


def test_what_another_process_saw_counts(place: Place) -> None:
    choice = place.choice()
    assert choice.current().url == SKETCH
    place.comfy_comes()
    assert place.choice().current().url == place.comfy.url
    place.comfy_goes()
    with pytest.raises(EngineUnreachable):
        choice.current()


def test_a_sketch_engine_on_the_probed_port_is_no_comfyui(place: Place) -> None:
    place.comfy.sketch = True
    place.comfy_comes()
    assert place.choice().current().url == SKETCH
    place.comfy_goes()


def test_a_seen_engine_that_is_slow_to_answer_is_still_used(place: Place) -> None:
    place.comfy_comes()
    choice = place.choice()
    choice.current()
    place.comfy.slow_stats = threading.Event()
    place.clock.now += 5.1
    assert choice.current().url == place.comfy.url
    place.comfy.slow_stats.set()
    place.comfy_goes()


def test_one_caller_probes_while_the_others_go_on(place: Place) -> None:
    choice = place.choice()
    choice.current()
    place.comfy_comes()
    place.comfy.slow_stats = threading.Event()
    place.clock.now += 5.1
    with ThreadPoolExecutor() as pool:
        prober = pool.submit(choice.current)
        place.comfy.wait_for(lambda: place.comfy.asked_stats)
        assert choice.current().url == SKETCH
        place.comfy.slow_stats.set()
        prober.result()
    assert place.comfy.asked_stats == 1
    place.comfy_goes()


def test_an_engine_is_made_once(place: Place) -> None:
    choice = place.choice(SKETCH)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(engine) for engine in pool.map(lambda _: choice.current(), range(64))}) == 1
