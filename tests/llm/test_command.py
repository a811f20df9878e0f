"""Servers that are started and stopped as programs. The programs here are small shell scripts over marker files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from errors import StackRefused
from llm import Stacks, read_stacks
from tests.llm.fake_servers import FakeVllm
from tests.llm.worlds import free_port, ids, until

PATH = {"PATH": os.environ["PATH"]}


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def marked(folder: Path, **more: Any) -> Stacks:
    """Two items, each loaded while its file exists."""
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
    return read_stacks([entry | more], PATH)


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    for name in ("kokoro", "whisper"):
        (tmp_path / name).touch()
    return tmp_path


def test_items_are_listed_unloaded_and_loaded_by_their_commands(loaded: Path) -> None:
    stacks = marked(loaded)
    held = stacks.resident()
    assert ids(held) == {"kokoro", "whisper"}
    assert stacks.busy() is None
    stacks.release(held)
    assert stacks.resident() == ()
    assert stacks.restore(held[:1]) == ()
    assert ids(stacks.resident()) == {"kokoro"}


def test_an_unload_that_complains_that_there_is_nothing_is_no_error(loaded: Path) -> None:
    stacks = marked(loaded)
    held = stacks.resident()
    stacks.release(held)
    stacks.release(held)
    assert stacks.resident() == ()


def test_an_unload_that_fails_is_told_with_the_commands_words(loaded: Path) -> None:
    complain = script(loaded, "complain", "echo not allowed >&2; exit 5")
    stacks = marked(loaded, unload=[complain, "sk-secret"])
    with pytest.raises(StackRefused, match="ended with 5: not allowed") as told:
        stacks.release(stacks.resident())
    assert "sk-secret" not in told.value.message


def test_a_command_that_cannot_say_is_never_taken_for_nothing_loaded(loaded: Path) -> None:
    for text in ("exit 2", "exit 4", "exit 127", "kill -9 $$"):
        with pytest.raises(StackRefused):
            marked(loaded, loaded=[script(loaded, "odd", text)]).resident()


def test_a_program_that_is_not_there_is_named(loaded: Path) -> None:
    stacks = marked(loaded, loaded=["no-such-program-here"])
    with pytest.raises(StackRefused, match="no-such-program-here cannot be run"):
        stacks.resident()
    (status,) = stacks.status()
    assert (status.loaded, status.busy) == (None, None)
    assert "no-such-program-here" in (status.problem or "")


def test_an_argument_is_never_read_by_a_shell(tmp_path: Path) -> None:
    hostile = f"x; touch {tmp_path}/owned $(touch {tmp_path}/owned)"
    stacks = marked(tmp_path, items=[hostile], loaded=["test", "-n", "{id}"], load=["echo", "{id}"])
    assert ids(stacks.resident()) == {hostile}
    stacks.restore(stacks.resident())
    assert not (tmp_path / "owned").exists()


def test_a_command_gets_no_secrets_of_easel(tmp_path: Path) -> None:
    shown = script(tmp_path, "show", f"env > {tmp_path}/environment")
    entry = {
        "driver": "command",
        "items": ["x"],
        "loaded": [shown],
        "unload": ["true"],
        "load": ["true"],
    }
    environment = PATH | {"LLM_KEY": "sk-secret", "DOCKER_HOST": "unix:///run/docker.sock"}
    read_stacks([entry], environment).resident()
    told = (tmp_path / "environment").read_text("utf-8")
    assert "sk-secret" not in told
    assert "DOCKER_HOST=unix:///run/docker.sock" in told


def test_a_command_that_hangs_is_killed_with_its_children(loaded: Path) -> None:
    pids = loaded / "pids"
    slow = script(loaded, "slow", f"sleep 60 & echo $! > {pids}; wait")
    stacks = marked(loaded, unload=[slow], unload_s=0.5)
    start = time.monotonic()
    stacks.release(stacks.resident()[:1])
    assert time.monotonic() - start < 2
    child = int(pids.read_text("utf-8"))
    assert until(lambda: not _runs(child))
    assert ids(stacks.resident()) == {"kokoro", "whisper"}


def _runs(pid: int) -> bool:
    """A process that ended and that nobody has waited for is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_that_a_load_leaves_behind_holds_nothing_up(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    start_it = script(tmp_path, "start", f"sleep 60 & echo $! > {pids}; touch {tmp_path}/kokoro")
    stacks = marked(tmp_path, items=["kokoro"], load=[start_it], restore=["kokoro"], load_s=10)
    start = time.monotonic()
    assert stacks.restore([]) == ()
    assert time.monotonic() - start < 5
    child = int(pids.read_text("utf-8"))
    assert _runs(child)
    os.kill(child, 9)


def test_one_item_that_cannot_be_loaded_keeps_no_other_from_it(loaded: Path) -> None:
    picky = script(loaded, "picky", f'[ "$1" = whisper ] || exit 9; touch {loaded}/$1')
    stacks = marked(loaded, load=[picky, "{id}"])
    held = stacks.resident()
    stacks.release(held)
    (failure,) = stacks.restore(held)
    assert failure.id == "kokoro"
    assert "ended with 9" in failure.message
    assert ids(stacks.resident()) == {"whisper"}


def test_a_loaded_item_is_ready_when_its_health_answers(loaded: Path) -> None:
    with FakeVllm() as server:
        stacks = marked(loaded, health=f"GET {server.url}/health")
        assert stacks.restore(stacks.resident()) == ()
        assert stacks.status()[0].url == server.url
    stacks = marked(loaded, health=f"GET http://127.0.0.1:{free_port()}/health", load_s=0.3)
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
def test_a_unit_on_its_way_up_or_down_holds_memory(tmp_path: Path, state: str) -> None:
    (tmp_path / "tts").write_text(state, "utf-8")
    assert ids(shorthand(tmp_path, "systemd").resident()) == {"tts"}


def test_a_unit_that_failed_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "tts").write_text("failed", "utf-8")
    assert shorthand(tmp_path, "systemd").resident() == ()


@pytest.mark.parametrize("kind", ["systemd", "docker"])
def test_a_unit_or_a_container_that_does_not_exist_is_no_proof(tmp_path: Path, kind: str) -> None:
    with pytest.raises(StackRefused, match="ended with"):
        shorthand(tmp_path, kind).resident()
