"""The engine as a user of the GPU, and the process it lives in."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine, EngineProcess, EngineStats, EngineTenant
from errors import EngineStartFailed, EngineUnreachable
from tests.server.running import until

GB = 10**9


def stats(held: int, *, device_type: str = "cuda", free: int = 10 * GB) -> EngineStats:
    return EngineStats(
        version="0.0",
        is_sketch=False,
        device="cuda:0 some GPU",
        device_type=device_type,
        vram_total=24 * GB,
        vram_free=free,
        ram_total=None,
        ram_free=None,
        torch_vram_total=held,
        torch_vram_free=held // 2,
    )


class FakeEngine:
    """`looks`: what each look at the memory shows, the last one for ever."""

    def __init__(self, *looks: EngineStats | EngineUnreachable) -> None:
        self.looks = list(looks)
        self.let_go_calls = 0

    def stats(self) -> EngineStats:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, EngineUnreachable):
            raise look
        return look

    def let_go(self) -> None:
        self.let_go_calls += 1


def tenant(
    engine: FakeEngine, host: EngineProcess | None = None, clock: Callable[[], float] = lambda: 0.0
) -> EngineTenant:
    return EngineTenant(
        lambda: engine, host or EngineProcess(), start_timeout_s=1, clock=clock, pause=lambda _: None
    )  # type: ignore[arg-type, return-value]


REFUSED = EngineUnreachable("nobody listens", url="http://x", refused=True)
SLOW = EngineUnreachable("too slow", url="http://x", refused=False, slow=True)


def test_models_count_as_resident_while_comfyui_holds_their_memory() -> None:
    engine = tenant(FakeEngine(stats(7 * GB), stats(7 * GB), stats(GB // 10)))
    assert [len(engine.resident()) for _ in range(3)] == [1, 1, 0]


def test_memory_that_does_not_come_free_is_never_said_to_be_gone() -> None:
    ticks = itertools.count()
    engine = tenant(FakeEngine(*[stats(20 * GB)] * 8, stats(12 * GB)), clock=lambda: float(next(ticks)))
    assert [len(engine.resident()) for _ in range(15)] == [1] * 15


@pytest.mark.parametrize("device_type", ["cpu", "xpu", "mps", "privateuseone"])
def test_figures_that_are_not_the_whole_devices_are_not_believed(device_type: str) -> None:
    engine = tenant(FakeEngine(stats(7 * GB, device_type=device_type)))
    assert (engine.resident(), engine.room_bytes()) == ((), None)


def test_room_is_what_is_free_and_all_that_comfyui_holds_itself() -> None:
    # 10 GB count as free, 3 of them reserved by ComfyUI and not in use; it holds 6 in all.
    assert tenant(FakeEngine(stats(6 * GB))).room_bytes() == 13 * GB


def test_an_engine_without_a_process_holds_nothing_and_is_asked_nothing() -> None:
    fake = FakeEngine(REFUSED)
    engine = tenant(fake)
    engine.release(())
    assert (engine.resident(), engine.busy(), engine.room_bytes(), fake.let_go_calls) == ((), 0, None, 0)


def test_an_engine_that_is_only_slow_is_not_taken_for_gone() -> None:
    engine = tenant(FakeEngine(SLOW))
    for ask in (engine.resident, engine.busy, engine.is_down):
        with pytest.raises(EngineUnreachable):
            ask()
    assert engine.can_be_started() is False


def test_an_engine_that_nobody_can_start_is_an_error() -> None:
    with pytest.raises(EngineUnreachable):
        tenant(FakeEngine(REFUSED)).restore(())


def test_a_start_that_brings_no_engine_ends_in_time(tmp_path: Path) -> None:
    ticks = itertools.count()
    host = EngineProcess.of({"command": [sys.executable, "-c", "pass"]}, tmp_path)
    engine = tenant(FakeEngine(REFUSED), host, clock=lambda: next(ticks) / 10)
    with pytest.raises(EngineStartFailed, match="did not answer within 1 s"):
        engine.restore(())


def test_a_real_engine_is_told_to_drop_jobs_and_does_not_mind_unknown_ones(sketch_url: str) -> None:
    engine = Engine(sketch_url)
    made = EngineTenant(lambda: engine, EngineProcess(), start_timeout_s=1)
    made.drop(["nobody-knows-it"])
    made.drop(None)
    assert (made.busy(), made.resident(), made.room_bytes()) == (0, (), None)
    engine.close()


# --- where its process lives -----------------------------------------------------------------------


def test_a_command_is_started_once_outlives_us_and_its_end_is_seen(tmp_path: Path) -> None:
    host = EngineProcess.of(
        {"command": [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]}, tmp_path
    )
    assert (host.can_start, host.state()) == (True, "exited")
    host.start()
    pid = int((tmp_path / "engine.pid").read_text().split()[0])
    host.start()
    assert int((tmp_path / "engine.pid").read_text().split()[0]) == pid
    assert (host.state(), os.getsid(pid)) == ("running", pid)
    until(lambda: "up" in (tmp_path / "engine.log").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: host.state() == "exited")


def test_a_number_that_is_another_process_by_now_is_not_our_engine(tmp_path: Path) -> None:
    host = EngineProcess.of({"command": ["/bin/true"]}, tmp_path)
    (tmp_path / "engine.pid").write_text(f"{os.getpid()} 1")
    assert host.state() == "exited"


def test_a_command_does_not_see_our_settings(tmp_path: Path) -> None:
    os.environ["EASEL_API_KEYS"] = "a-secret"
    try:
        EngineProcess.of({"command": ["/usr/bin/env"]}, tmp_path).start()
    finally:
        del os.environ["EASEL_API_KEYS"]
    until(lambda: "PATH=" in (tmp_path / "engine.log").read_text())
    assert "a-secret" not in (tmp_path / "engine.log").read_text()


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineStartFailed, match="cannot be started"):
        EngineProcess.of({"command": [str(tmp_path / "none")]}, tmp_path).start()


@pytest.mark.parametrize(
    ("start", "tool", "prints", "expected"),
    [
        ({"systemd": "comfyui.service"}, "systemctl", "active", "running"),
        ({"systemd": "comfyui.service"}, "systemctl", "activating", "starting"),
        ({"systemd": "comfyui.service"}, "systemctl", "inactive", "exited"),
        ({"systemd": "comfyui.service"}, "systemctl", "failed", "exited"),
        ({"docker": "comfyui"}, "docker", "running", "running"),
        ({"docker": "comfyui"}, "docker", "exited", "exited"),
        ({"docker": "comfyui"}, "docker", "", "absent"),
    ],
)
def test_units_and_containers_are_asked_and_started_by_their_tools(
    tmp_path: Path, start: dict[str, str], tool: str, prints: str, expected: str
) -> None:
    program = tmp_path / tool
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho {prints}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{before}"
    try:
        host = EngineProcess.of(start, tmp_path)
        assert host.state() == expected
        host.start()
    finally:
        os.environ["PATH"] = before
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-1] == f"start {host.name}"


def test_where_there_is_no_tool_nobody_can_tell(tmp_path: Path) -> None:
    before = os.environ["PATH"]
    os.environ["PATH"] = str(tmp_path)
    try:
        host = EngineProcess.of({"docker": "comfyui"}, tmp_path)
        assert host.state() == "absent"
        with pytest.raises(EngineStartFailed, match="no docker"):
            host.start()
    finally:
        os.environ["PATH"] = before


def test_a_port_that_nobody_listens_at_is_down() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = Engine(f"http://127.0.0.1:{port}")
    assert EngineTenant(lambda: engine, EngineProcess(), start_timeout_s=1).is_down() is True
