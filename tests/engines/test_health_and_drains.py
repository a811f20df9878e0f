"""Engines that are down or drained."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from engines.drains import Drains
from engines.health import Health
from errors import EngineUnreachable, StateUnwritable


def wait_until(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_that_failed_is_out_until_it_answers_again() -> None:
    answers = threading.Event()
    asked: list[str] = []

    def check(name: str) -> None:
        asked.append(name)
        if not answers.is_set():
            raise EngineUnreachable("down")

    health = Health(check, interval_s=0.01)
    health.report("one", EngineUnreachable("died"))
    wait_until(lambda: len(asked) > 2)
    outage = health.outage("one")
    assert outage is not None
    assert outage.reason.message == "died"
    assert health.outage("other") is None
    answers.set()
    wait_until(lambda: health.outage("one") is None)


def test_an_engine_whose_gpu_failed_is_out_for_a_while_although_it_answers() -> None:
    asked: list[float] = []
    health = Health(lambda name: asked.append(time.monotonic()), interval_s=0.01)
    reported_at = time.monotonic()
    health.report("one", EngineUnreachable("its GPU failed"), hold_s=0.3)
    assert health.outage("one") is not None
    wait_until(lambda: health.outage("one") is None)
    assert asked[0] - reported_at >= 0.3


def test_an_engine_that_fails_again_while_it_is_looked_at_stays_out() -> None:
    health: Health

    def check(name: str) -> None:
        if not again:
            again.append(name)
            health.report(name, EngineUnreachable("again"), hold_s=60)

    again: list[str] = []
    health = Health(check, interval_s=0.01)
    health.report("one", EngineUnreachable("first"))
    wait_until(lambda: again)
    time.sleep(0.1)
    outage = health.outage("one")
    assert outage is not None
    assert outage.reason.message == "again"
    health.forget("one")
    assert health.outage("one") is None


def test_a_drained_engine_is_drained_for_all_processes_until_it_is_resumed(tmp_path: Path) -> None:
    one, other = (Drains(tmp_path / "engines.json", clock=lambda: 5.0) for _ in range(2))
    assert one.all() == {}
    assert one.set("left", is_drained=True)
    assert not other.set("left", is_drained=True)
    assert other.set("right", is_drained=True)
    assert one.all() == other.all() == {"left": 5.0, "right": 5.0}
    assert other.set("left", is_drained=False)
    assert one.all() == {"right": 5.0}


@pytest.mark.parametrize(
    "drained", ['["left"]', '{"left": NaN}', '{"left": 1e30}', '{"left": -1}', '{"left": "x"}']
)
def test_a_damaged_list_of_drained_engines_drains_none(tmp_path: Path, drained: str) -> None:
    path = tmp_path / "engines.json"
    path.write_text(f'{{"drained": {drained}}}')
    assert Drains(path).all() == {}
    assert Drains(path).set("left", is_drained=True)
    assert list(Drains(path).all()) == ["left"]


def test_a_list_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "engines.lock").mkdir()
    with pytest.raises(StateUnwritable):
        Drains(tmp_path / "engines.json").set("left", is_drained=True)
