"""`easel demo`: everything that it prints was measured, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from demo import words
from demo.script import PEOPLE, busy_hour
from tests.conftest import ROOT
from tests.waiting import wait_until

SECONDS = 8
TIMEOUT_S = 240
HOUR = busy_hour()
PICTURES = [act for act in HOUR if act.kind != "chat"]
CHATS = [act for act in HOUR if act.kind == "chat"]


def environment(folder: Path) -> dict[str, str]:
    """One in which a state directory is set, and every folder that may be written to is empty."""
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EASEL_", "XDG_"))}
    return {
        **kept,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "EASEL_STATE_DIR": str(folder / "state"),
        "EASEL_ENGINE_URL": "http://127.0.0.1:1",
    }


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "easel", "demo", *arguments],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )


def require_nothing_left(folder: Path) -> None:
    mark = f"TMPDIR={folder / 'tmp'}".encode()
    assert [path for name in ("home", "tmp") for path in (folder / name).iterdir()] == []
    assert not (folder / "state").exists()
    if sys.platform == "linux":
        assert [path for path in Path("/proc").glob("[0-9]*/environ") if mark in read(path)] == []


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The table, what was said, and the folder with home, temporary files and state directory."""
    folder = tmp_path_factory.mktemp("demo")
    process = start(folder, "--seconds", str(SECONDS), "--json")
    try:
        out, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    said = (folder / "said").read_text()
    assert process.returncode == 0, said
    return json.loads(out), said, folder


def test_each_picture_and_chat_of_the_hour_is_asked_for_and_answered_once(
    played: tuple[dict[str, Any], str, Path],
) -> None:
    table, said, _ = played
    assert table["failed"] == []
    assert table["answered"] == {
        "picture": sum(act.kind == "picture" for act in HOUR),
        "edit": sum(act.kind == "edit" for act in HOUR),
        "chat": len(CHATS),
    }
    # The same numbers in the arbiter's log, which the table of waits and the lines come from.
    assert table["measured"]["generation"]["requests"] == len(PICTURES)
    assert table["measured"]["inference"]["requests"] == len(CHATS)
    for who in PEOPLE:
        used = re.findall(rf"^\d+:\d\d  {who} +(?:picture|chat): waited [\d.]+ s", said, re.MULTILINE)
        assert len(used) == sum(act.who == who for act in HOUR)


def test_the_gpu_changes_hands_both_ways_and_both_models_are_never_in_it(
    played: tuple[dict[str, Any], str, Path],
) -> None:
    table, said, _ = played
    to_pictures, to_chats = (said.count(f"the {side} have the GPU after") for side in ("pictures", "chats"))
    assert to_pictures >= 2
    assert to_chats >= 2
    assert table["measured"]["switches"] == to_pictures + to_chats
    assert table["measured"]["switching_s"] > 0
    assert table["out_of_memory"] == 0


def test_another_policy_is_simulated_with_the_same_requests(
    played: tuple[dict[str, Any], str, Path],
) -> None:
    table, _, _ = played
    for name in ("simulated_same_policy", "simulated_without_minimum_stay"):
        assert table[name]["generation"]["requests"] == len(PICTURES)
        assert table[name]["inference"]["requests"] == len(CHATS)


def test_nothing_is_left_behind_and_no_state_directory_is_touched(
    played: tuple[dict[str, Any], str, Path],
) -> None:
    _, said, folder = played
    require_nothing_left(folder)
    url = re.search(r"Watch it:  (http://127\.0\.0\.1:\d+)/", said)
    assert url
    with pytest.raises(requests.ConnectionError):
        requests.get(url[1], timeout=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly_and_the_page_can_be_watched_until_then(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "--seconds", "600", "--json")
    try:
        said = tmp_path / "said"
        wait_until(lambda: "Key: " in said.read_text() or process.poll() is not None, TIMEOUT_S)
        found = re.search(r"Watch it:  (\S+)/#machine\nKey: +(\S+)", said.read_text())
        assert found, said.read_text()
        assert "<html" in requests.get(f"{found[1]}/", headers={"Accept": "text/html"}, timeout=60).text
        status = requests.get(
            f"{found[1]}/api/comfyui/status",
            headers={"Authorization": f"Bearer {found[2]}"},
            timeout=60,
        ).json()
        assert status["memory"]["vram_ceil_gb"] == 24
        process.send_signal(number)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert said.read_text().endswith("Stopped.\n")
    require_nothing_left(tmp_path)


def test_a_server_of_a_killed_demo_ends_by_itself(tmp_path: Path) -> None:
    process = start(tmp_path, "--seconds", "600", "--json")
    try:
        said = tmp_path / "said"
        wait_until(lambda: "Key: " in said.read_text() or process.poll() is not None, TIMEOUT_S)
        url = said.read_text().partition("Watch it:  ")[2].split("/#")[0]
        assert requests.get(f"{url}/health", timeout=60).status_code == 200
    finally:
        process.kill()
        process.communicate()

    def is_gone() -> bool:
        try:
            requests.get(f"{url}/health", timeout=5)
        except requests.ConnectionError:
            return True
        return False

    wait_until(is_gone, TIMEOUT_S)


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(tmp_path, "--port", str(port))
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert f"Port {port} cannot be used" in (tmp_path / "said").read_text()
    require_nothing_left(tmp_path)


def test_the_same_seed_gives_the_same_hour() -> None:
    assert busy_hour(3) == busy_hour(3) != busy_hour(4)
    assert all(0 <= act.at_s < 3600 for act in busy_hour(3))


POLICY = {"min_stay_s": 0.5, "linger_s": 0.1}


@pytest.mark.parametrize(
    ("reason", "is_contended", "text"),
    [
        ("image request", False, "2 pictures wait, and nobody waits for chats"),
        (
            "image request",
            True,
            "2 pictures wait, and the chats had it for 0.75 s (gpu.min_stay_s is 0.50 s)",
        ),
        ("LLM loaded: llm/other", False, "LLM loaded: llm/other"),
    ],
)
def test_a_switch_is_explained_by_what_the_arbiter_wrote(reason: str, is_contended: bool, text: str) -> None:
    event = {"target": "generation", "reason": reason, "waiting": ["a", "b"]}
    line = words.switch_began(event, POLICY, stayed_s=0.75, is_contended=is_contended)
    assert line == f"the GPU goes to the pictures: {text}"


def test_a_failed_switch_is_told_as_one() -> None:
    event = {
        "target": "generation",
        "took_s": 2.0,
        "error": "llm: no answer",
        "phases": [],
        "not_loaded": [],
    }
    assert words.switch_ended(event) == "the switch to the pictures failed after 2.00 s: llm: no answer"
