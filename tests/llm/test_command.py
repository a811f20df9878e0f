"""Servers that are started and stopped by commands. The commands here are small shell scripts that use marker files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from errors import StackRefused
from llm import Stacks, read_stacks
from tests.llm.fake_servers import FakeVllm
from tests.llm.stack_helpers import ids
from tests.processes import free_port
from tests.waiting import wait_until

PATH = {"PATH": os.environ["PATH"]}


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def marker_stacks(folder: Path, **settings: Any) -> Stacks:
    """Two items, each loaded while its marker file exists."""
    entry = {
        "name": "tts",
        "driver": "command",
        "items": ["kokoro", "whisper"],
        "loaded": ["test", "-e", f"{folder}/{{id}}"],
        "unload": ["rm", f"{folder}/{{id}}"],
        "load": ["touch", f"{folder}/{{id}}"],
        "call_s": 2,
        "unload_s": 2,
        "load_s": 2,
    }
    return read_stacks([entry | settings], PATH)


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    for name in ("kokoro", "whisper"):
        (tmp_path / name).touch()
    return tmp_path


def test_items_are_listed_unloaded_and_loaded_by_their_commands(loaded: Path) -> None:
    stacks = marker_stacks(loaded)
    held = stacks.resident()
    assert ids(held) == {"kokoro", "whisper"}
    assert stacks.busy() is None
    stacks.release(held)
    assert stacks.resident() == ()
    assert stacks.restore(held[:1]) == ()
    assert ids(stacks.resident()) == {"kokoro"}


def test_an_unload_command_that_fails_because_nothing_is_loaded_is_not_an_error(loaded: Path) -> None:
    stacks = marker_stacks(loaded)
    held = stacks.resident()
    stacks.release(held)
    stacks.release(held)
    assert stacks.resident() == ()


def test_a_failed_unload_raises_with_the_stderr_of_the_command(loaded: Path) -> None:
    failing = script(loaded, "failing", "echo not allowed >&2; exit 5")
    stacks = marker_stacks(loaded, unload=[failing, "sk-secret"])
    with pytest.raises(StackRefused, match="exited with status 5: not allowed") as error_info:
        stacks.release(stacks.resident())
    assert "sk-secret" not in error_info.value.message


def test_an_unexpected_exit_status_never_means_not_loaded(loaded: Path) -> None:
    for text in ("exit 2", "exit 4", "exit 127", "kill -9 $$"):
        with pytest.raises(StackRefused):
            marker_stacks(loaded, loaded=[script(loaded, "check", text)]).resident()


def test_a_missing_program_is_named(loaded: Path) -> None:
    stacks = marker_stacks(loaded, loaded=["no-such-program-here"])
    with pytest.raises(StackRefused, match="no-such-program-here cannot be run"):
        stacks.resident()
    (status,) = stacks.status()
    assert (status.loaded, status.busy) == (None, None)
    assert "no-such-program-here" in (status.problem or "")


def test_arguments_are_not_interpreted_by_a_shell(tmp_path: Path) -> None:
    hostile = f"x; touch {tmp_path}/owned $(touch {tmp_path}/owned)"
    stacks = marker_stacks(tmp_path, items=[hostile], loaded=["test", "-n", "{id}"], load=["echo", "{id}"])
    assert ids(stacks.resident()) == {hostile}
    stacks.restore(stacks.resident())
    assert not (tmp_path / "owned").exists()


def test_commands_do_not_get_the_secrets_of_easel(tmp_path: Path) -> None:
    show = script(tmp_path, "show", f"env > {tmp_path}/environment")
    entry = {
        "driver": "command",
        "items": ["x"],
        "loaded": [show],
        "unload": ["true"],
        "load": ["true"],
    }
    environment = PATH | {"LLM_KEY": "sk-secret", "DOCKER_HOST": "unix:///run/docker.sock"}
    read_stacks([entry], environment).resident()
    received = (tmp_path / "environment").read_text("utf-8")
    assert "sk-secret" not in received
    assert "DOCKER_HOST=unix:///run/docker.sock" in received


def test_a_command_that_hangs_is_killed_with_its_children(loaded: Path) -> None:
    pids = loaded / "pids"
    slow = script(loaded, "slow", f"sleep 60 & echo $! > {pids}; wait")
    stacks = marker_stacks(loaded, unload=[slow], unload_s=0.5)
    start = time.monotonic()
    stacks.release(stacks.resident()[:1])
    assert time.monotonic() - start < 2
    child = int(pids.read_text("utf-8"))
    assert wait_until(lambda: not _runs(child))
    assert ids(stacks.resident()) == {"kokoro", "whisper"}


def _runs(pid: int) -> bool:
    """Z: a zombie, which has ended but whose parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_left_running_by_the_load_command_does_not_block_the_restore(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    start_command = script(tmp_path, "start", f"sleep 60 & echo $! > {pids}; touch {tmp_path}/kokoro")
    stacks = marker_stacks(tmp_path, items=["kokoro"], load=[start_command], restore=["kokoro"], load_s=10)
    start = time.monotonic()
    assert stacks.restore([]) == ()
    assert time.monotonic() - start < 5
    child = int(pids.read_text("utf-8"))
    assert _runs(child)
    os.kill(child, 9)


def test_an_item_that_cannot_be_loaded_does_not_stop_the_others(loaded: Path) -> None:
    picky = script(loaded, "picky", f'[ "$1" = whisper ] || exit 9; touch {loaded}/$1')
    stacks = marker_stacks(loaded, load=[picky, "{id}"])
    held = stacks.resident()
    stacks.release(held)
    (failure,) = stacks.restore(held)
    assert failure.id == "kokoro"
    assert "exited with status 9" in failure.message
    assert ids(stacks.resident()) == {"whisper"}


def test_a_loaded_item_is_ready_when_its_health_call_succeeds(loaded: Path) -> None:
    with FakeVllm() as server:
        stacks = marker_stacks(loaded, health=f"GET {server.url}/health")
        assert stacks.restore(stacks.resident()) == ()
        assert stacks.status()[0].url == server.url
    stacks = marker_stacks(loaded, health=f"GET http://127.0.0.1:{free_port()}/health", load_s=0.3)
    assert [failure.id for failure in stacks.restore(stacks.resident())] == ["kokoro", "whisper"]


# --- systemd and docker ---------------------------------------------------------------------------------------

SYSTEMCTL = """
state=$(cat "$HOME/$2" 2>/dev/null || echo unknown)
case "$1" in
  is-active) echo $state; case $state in active) exit 0;; unknown) exit 4;; *) exit 3;; esac;;
  start) echo active > "$HOME/$2";;
  stop) echo inactive > "$HOME/$2";;
esac
"""
DOCKER = """
for last; do :; done
case "$1 $2 $3" in
  "inspect -f {{.State.Running}}") cat "$HOME/$last" 2>/dev/null || { echo; echo "Error: No such object: $last" >&2; exit 1; };;
  "start $last ") echo true > "$HOME/$last";;
  "stop -t 25") echo false > "$HOME/$last";;
  *) exit 64;;
esac
"""


def shorthand(folder: Path, kind: str) -> Stacks:
    script(folder, "systemctl", SYSTEMCTL)
    script(folder, "docker", DOCKER)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    return read_stacks([{"driver": "command", kind: ["tts"]}], environment)


@pytest.mark.parametrize(("kind", "up"), [("systemd", "active"), ("docker", "true")])
def test_a_unit_or_a_container_is_stopped_and_started(tmp_path: Path, kind: str, up: str) -> None:
    (tmp_path / "tts").write_text(up, "utf-8")
    stacks = shorthand(tmp_path, kind)
    held = stacks.resident()
    assert ids(held) == {"tts"}
    stacks.release(held)
    assert stacks.resident() == ()
    stacks.release(held)
    assert stacks.restore(held) == ()
    assert ids(stacks.resident()) == {"tts"}


@pytest.mark.parametrize("state", ["activating", "deactivating", "reloading", "maintenance"])
def test_a_unit_that_is_starting_or_stopping_counts_as_loaded(tmp_path: Path, state: str) -> None:
    (tmp_path / "tts").write_text(state, "utf-8")
    assert ids(shorthand(tmp_path, "systemd").resident()) == {"tts"}


def test_a_failed_unit_counts_as_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "tts").write_text("failed", "utf-8")
    assert shorthand(tmp_path, "systemd").resident() == ()


@pytest.mark.parametrize("kind", ["systemd", "docker"])
def test_a_unit_or_a_container_that_does_not_exist_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(StackRefused, match="exited with status"):
        shorthand(tmp_path, kind).resident()
