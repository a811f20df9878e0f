"""The engine as a user of the GPU, and its process."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from engine import Engine, EngineProcess, EngineStats, EngineTenant, device_memory
from errors import EngineStartFailed, EngineUnreachable
from tests.waiting import wait_until

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


def dynamic(free: int) -> EngineStats:
    """With DynamicVRAM: PyTorch's pool is nearly empty, whatever the models take."""
    return replace(stats(GB // 5, free=free), torch_vram_free=GB // 10)


class FakeEngine:
    """`results`: what each call of `stats` returns or raises; the last one is repeated."""

    url = "http://127.0.0.1:8188"

    def __init__(self, *results: EngineStats | EngineUnreachable) -> None:
        self.results = list(results)
        self.free_requests = 0

    def stats(self) -> EngineStats:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, EngineUnreachable):
            raise result
        return result

    def request_free(self) -> None:
        self.free_requests += 1


REFUSED = EngineUnreachable("connection refused", url="http://x", refused=True)
SLOW = EngineUnreachable("timed out", url="http://x", refused=False, slow=True)


def make_tenant(
    engine: FakeEngine,
    process: EngineProcess | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    driver_free_bytes: Callable[[], int | None] = lambda: None,
) -> EngineTenant:
    return EngineTenant(
        lambda: engine,  # type: ignore[arg-type, return-value]
        process or EngineProcess(),
        start_timeout_s=1,
        driver_free_bytes=driver_free_bytes,
        clock=clock,
        sleep=lambda _: None,
    )


def test_models_are_resident_while_comfyui_holds_their_memory() -> None:
    engine = make_tenant(FakeEngine(stats(7 * GB), stats(7 * GB), stats(GB // 10)))
    assert [len(engine.resident()) for _ in range(3)] == [1, 1, 0]


def test_memory_that_is_not_freed_stays_resident() -> None:
    ticks = itertools.count()
    engine = make_tenant(FakeEngine(*[stats(20 * GB)] * 8, stats(12 * GB)), clock=lambda: float(next(ticks)))
    assert [len(engine.resident()) for _ in range(15)] == [1] * 15


def test_models_outside_pytorchs_pool_are_resident_until_the_device_has_no_more_memory_to_free() -> None:
    now = itertools.count(step=0.125)
    free = [2, 2, 2, 8, 8, 14, 14, 14, 14]
    engine = make_tenant(FakeEngine(*[dynamic(gb * GB) for gb in free]), clock=lambda: next(now))
    assert engine.resident() == (), "nothing tells that 12 GB of weights are there"
    engine.release(())
    held = [len(engine.resident()) for _ in free[2:]]
    # Steady for 0.2 s at 8 GB is not reached; at 14 GB it is.
    assert held == [1, 1, 1, 1, 1, 0, 0]


def test_an_engine_that_frees_nothing_is_waited_for_a_second_and_a_repeated_release_adds_nothing() -> None:
    now = itertools.count(step=0.25)
    fake = FakeEngine(dynamic(20 * GB))
    engine = make_tenant(fake, clock=lambda: next(now))
    engine.release(())
    held = []
    for _ in range(6):
        held.append(len(engine.resident()))
        engine.release(())
    assert held[:4] == [1, 1, 1, 0]
    assert fake.free_requests == 7


@pytest.mark.parametrize("device_type", ["cpu", "xpu", "mps", "privateuseone"])
def test_memory_figures_that_are_not_those_of_the_whole_gpu_are_not_used(device_type: str) -> None:
    engine = make_tenant(FakeEngine(stats(7 * GB, device_type=device_type)))
    assert (engine.resident(), engine.available_bytes()) == ((), None)


def test_available_memory_is_what_is_free_and_what_comfyui_holds() -> None:
    # 10 GB count as free, 3 of them reserved by ComfyUI and not in use; it holds 6 in total.
    assert make_tenant(FakeEngine(stats(6 * GB))).available_bytes() == 13 * GB


def test_available_memory_does_not_count_what_only_pytorch_calls_free() -> None:
    # The device has 2 GB free. ComfyUI's figure adds 5 GB that its own allocator has reserved and does not use.
    reserved = replace(stats(6 * GB, free=7 * GB), torch_vram_free=5 * GB)
    assert reserved.device_free_bytes == 2 * GB
    assert make_tenant(FakeEngine(dynamic(3 * GB))).available_bytes() == 3 * GB - GB // 10 + GB // 5


@pytest.mark.parametrize("error", [REFUSED, SLOW])
def test_while_the_engine_is_silent_the_driver_of_this_machine_tells_what_is_free(
    error: EngineUnreachable,
) -> None:
    fake = FakeEngine(error)
    assert make_tenant(fake, driver_free_bytes=lambda: 5 * GB).available_bytes() == 5 * GB
    fake.url = "http://gpu.example:8188"
    assert make_tenant(fake, driver_free_bytes=lambda: 5 * GB).available_bytes() is None


def write_card(sysfs: Path, name: str, total: int, used: int) -> None:
    device = sysfs / name / "device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text(f"{total}\n")
    (device / "mem_info_vram_used").write_text(f"{used}\n")


def test_the_amdgpu_driver_tells_what_is_free_unless_there_are_two_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_nvidia", lambda: iter(()))
    assert device_memory.free_bytes(tmp_path) is None
    write_card(tmp_path, "card1", 16 * GB, 3 * GB)
    assert device_memory.free_bytes(tmp_path) == 13 * GB
    write_card(tmp_path, "card2", 16 * GB, 3 * GB)
    assert device_memory.free_bytes(tmp_path) is None
    monkeypatch.setattr(device_memory, "_nvidia", lambda: iter((7 * GB,)))
    assert device_memory.free_bytes(tmp_path / "none") == 7 * GB


def test_a_machine_without_an_nvidia_driver_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert list(device_memory._nvidia()) == []


def test_an_engine_that_is_down_holds_nothing_and_gets_no_request() -> None:
    fake = FakeEngine(REFUSED)
    engine = make_tenant(fake)
    engine.release(())
    assert (engine.resident(), engine.busy(), engine.available_bytes(), fake.free_requests) == (
        (),
        0,
        None,
        0,
    )


def test_a_slow_engine_does_not_count_as_down() -> None:
    engine = make_tenant(FakeEngine(SLOW))
    for method in (engine.resident, engine.busy, engine.is_down):
        with pytest.raises(EngineUnreachable):
            method()
    assert engine.can_be_started() is False


def test_an_engine_that_is_down_and_cannot_be_started_is_an_error() -> None:
    with pytest.raises(EngineUnreachable):
        make_tenant(FakeEngine(REFUSED)).restore(())


def test_a_start_without_an_answering_engine_fails_after_the_timeout(tmp_path: Path) -> None:
    ticks = itertools.count()
    process = EngineProcess.from_setting({"command": [sys.executable, "-c", "pass"]}, tmp_path)
    engine = make_tenant(FakeEngine(REFUSED), process, clock=lambda: next(ticks) / 10)
    with pytest.raises(EngineStartFailed, match="did not answer within 1 s"):
        engine.restore(())


def test_cancelling_unknown_jobs_or_all_jobs_of_an_idle_engine_does_nothing(sketch_url: str) -> None:
    engine = Engine(sketch_url)
    tenant = EngineTenant(lambda: engine, EngineProcess(), start_timeout_s=1)
    tenant.cancel_jobs(["unknown"])
    tenant.cancel_jobs(None)
    assert (tenant.busy(), tenant.resident(), tenant.available_bytes()) == (0, (), None)
    engine.close()


# --- the engine's process --------------------------------------------------------------------------


def test_a_command_is_started_once_in_its_own_session_and_its_end_is_detected(tmp_path: Path) -> None:
    process = EngineProcess.from_setting(
        {"command": [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]}, tmp_path
    )
    assert (process.can_start, process.state()) == (True, "exited")
    process.start()
    pid = int((tmp_path / "engine.pid").read_text().split()[0])
    process.start()
    assert int((tmp_path / "engine.pid").read_text().split()[0]) == pid
    assert (process.state(), os.getsid(pid)) == ("running", pid)
    wait_until(lambda: "up" in (tmp_path / "engine.log").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: process.state() == "exited")


def test_a_pid_that_belongs_to_another_process_is_not_the_engine(tmp_path: Path) -> None:
    process = EngineProcess.from_setting({"command": ["/bin/true"]}, tmp_path)
    (tmp_path / "engine.pid").write_text(f"{os.getpid()} 1")
    assert process.state() == "exited"


def test_a_command_does_not_get_easels_settings(tmp_path: Path) -> None:
    os.environ["EASEL_API_KEYS"] = "a-secret"
    try:
        EngineProcess.from_setting({"command": ["/usr/bin/env"]}, tmp_path).start()
    finally:
        del os.environ["EASEL_API_KEYS"]
    wait_until(lambda: "PATH=" in (tmp_path / "engine.log").read_text())
    assert "a-secret" not in (tmp_path / "engine.log").read_text()


@pytest.mark.parametrize(("kind", "tool"), [("systemd", "systemctl"), ("docker", "docker")])
def test_systemctl_and_docker_get_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tool: str
) -> None:
    program = tmp_path / tool
    program.write_text(f"#!/bin/sh\nenv >> {tmp_path}/seen\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("EASEL_ENGINE_PASSWORD", "LLAMA_KEY"):
        monkeypatch.setenv(name, "s3cret")
    process = EngineProcess.from_setting({kind: "comfyui"}, tmp_path, ["LLAMA_KEY"])
    process.state()
    process.start()
    seen = (tmp_path / "seen").read_text()
    assert seen.count("PATH=") >= 2
    assert "s3cret" not in seen


def test_a_command_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EngineStartFailed, match="cannot be started"):
        EngineProcess.from_setting({"command": [str(tmp_path / "none")]}, tmp_path).start()


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
def test_the_state_and_the_start_of_units_and_containers_use_their_tools(
    tmp_path: Path, start: dict[str, str], tool: str, prints: str, expected: str
) -> None:
    program = tmp_path / tool
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho {prints}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{before}"
    try:
        process = EngineProcess.from_setting(start, tmp_path)
        assert process.state() == expected
        process.start()
    finally:
        os.environ["PATH"] = before
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == f"start {process.name}"


def test_without_docker_the_state_is_absent_and_a_start_fails(tmp_path: Path) -> None:
    before = os.environ["PATH"]
    os.environ["PATH"] = str(tmp_path)
    try:
        process = EngineProcess.from_setting({"docker": "comfyui"}, tmp_path)
        assert process.state() == "absent"
        with pytest.raises(EngineStartFailed, match="'docker' was not found"):
            process.start()
    finally:
        os.environ["PATH"] = before


def test_an_engine_whose_port_refuses_connections_is_down() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = Engine(f"http://127.0.0.1:{port}")
    assert EngineTenant(lambda: engine, EngineProcess(), start_timeout_s=1).is_down() is True
