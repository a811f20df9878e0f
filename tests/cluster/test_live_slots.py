"""Engines that are added to a host's easel.yaml and removed from it while it runs: it draws as many jobs at once as it has
engines."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from cluster import names
from cluster.sealing import Seal
from cluster.slots import Slots
from compiler import Catalogue
from sketch import SketchProcess
from tests.cluster.running_hosts import KEY, HostProcess, RedisServer, host, variables_of
from tests.cluster.test_hosts import in_background
from tests.processes import command_line
from tests.server.running import Server, running
from tests.waiting import wait_until

RENDER_MS = 3000
"""Long enough that two jobs are seen to run at once on a slow machine"""


@dataclass
class Growing:
    redis: RedisServer
    front: Server
    host: HostProcess
    engines: dict[str, SketchProcess]
    file: Path

    def use(self, *engines: str) -> None:
        write(self.file, {name: self.engines[name] for name in engines})

    def slots(self) -> int:
        """What the host tells the others."""
        key = names.host("growing")
        with contextlib.closing(self.redis.client()) as client:
            data = client.get(key)
        return int(Seal(KEY.encode()).open(key, data)["slots"]) if isinstance(data, bytes) else 0

    def children(self) -> list[int]:
        """The processes that draw."""
        pid = self.host.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in children if "-m easel worker" in command_line(int(each))]

    def is_drawing(self, name: str) -> bool:
        return bool(requests.get(f"{self.engines[name].url}/queue", timeout=60).json()["queue_running"])


def write(file: Path, engines: dict[str, SketchProcess]) -> None:
    lines = [f"  - {{name: {name}, url: '{engine.url}'}}" for name, engine in engines.items()]
    # Not in parts: it is read at any time.
    new = file.with_suffix(".new")
    new.write_text("\n".join(["engines:", *lines, ""]))
    new.replace(file)


@pytest.fixture
def growing(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Growing]:
    (tmp_path / "redis").mkdir()
    with contextlib.ExitStack() as stack:
        server = RedisServer(tmp_path / "redis")
        stack.callback(server.kill)
        engines = {
            name: stack.enter_context(
                SketchProcess(
                    nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=RENDER_MS
                )
            )
            for name in ("left", "right")
        }
        file = tmp_path / "easel.yaml"
        write(file, {"left": engines["left"]})
        front = stack.enter_context(running(tmp_path / "front", **variables_of(server.url)))
        process = host("growing", tmp_path / "host", server.url, EASEL_CONFIG=str(file))
        found = Growing(server, front, stack.enter_context(process), engines, file)
        found.host.wait_for("The host growing is ready")
        wait_until(lambda: found.slots() == 1 and len(found.children()) == 1)
        wait_until(lambda: requests.get(f"{front.url}/ready", timeout=60).status_code == 200)
        yield found


def test_an_engine_that_is_added_draws_beside_the_first_one_without_a_restart(growing: Growing) -> None:
    growing.use("left", "right")
    wait_until(lambda: growing.slots() == 2)
    assert len(growing.children()) == 2
    # Each time: two processes that choose at the same moment do not choose the same engine.
    for seed in (810, 820, 830):
        with (
            in_background(growing.front, seed=seed) as first,
            in_background(growing.front, seed=seed + 1) as second,
        ):
            wait_until(lambda: growing.is_drawing("left") and growing.is_drawing("right"), 60)
        assert [found[0].status_code for found in (first, second)] == [200, 200]


def test_no_job_ends_when_an_engine_is_removed_and_then_one_draws_at_a_time(growing: Growing) -> None:
    growing.use("left", "right")
    wait_until(lambda: growing.slots() == 2 and len(growing.children()) == 2)
    with in_background(growing.front, seed=83) as first, in_background(growing.front, seed=84) as second:
        wait_until(lambda: growing.is_drawing("left") and growing.is_drawing("right"))
        busy = set(growing.children())
        growing.use("left")
        wait_until(lambda: growing.slots() == 1)
        # Both draw: none of them is ended before its job is.
        assert set(growing.children()) == busy or not growing.is_drawing("right")
    for found in (first, second):
        assert found[0].status_code == 200, found[0].text
        assert "redrawn" not in found[0].json()["_hal0"]
    wait_until(lambda: len(growing.children()) == 1)
    assert set(growing.children()) < busy

    jobs = [
        threading.Thread(target=growing.front.draw, kwargs={"seed": seed, "timeout": 120})
        for seed in (85, 86)
    ]
    for job in jobs:
        job.start()
    wait_until(lambda: growing.is_drawing("left"))
    assert not growing.is_drawing("right")
    for job in jobs:
        job.join()
    assert len(requests.get(f"{growing.engines['right'].url}/history", timeout=60).json()) == 1


def test_a_process_that_replaces_a_killed_one_draws_on_the_engine_that_was_accepted_last(
    growing: Growing,
) -> None:
    def drawn(name: str) -> int:
        return len(requests.get(f"{growing.engines[name].url}/history", timeout=60).json())

    growing.use("right")
    # Of the main process and of the one that draws.
    wait_until(lambda: growing.host.log.count("engines are now right") == 2)
    growing.file.write_text("engines: [{name: right, url: 7}]\n")
    wait_until(lambda: growing.host.log.count("the changed engines are not valid") == 2)
    [killed] = growing.children()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: growing.host.log.count("the changed engines are not valid") == 3)
    assert growing.front.draw(seed=87, timeout=120).status_code == 200
    assert killed not in growing.children()
    assert (drawn("left"), drawn("right")) == (0, 1)


def test_what_can_run_is_the_smaller_number() -> None:
    engines = [1, 2]
    slots = Slots(lambda: len(engines))
    engines.append(3)
    assert (slots.wanted, slots.usable) == (3, 2)
    slots.processes = 3
    assert slots.usable == 3
    del engines[1:]
    assert (slots.wanted, slots.usable) == (1, 1)
    engines.clear()
    assert slots.usable == 1
