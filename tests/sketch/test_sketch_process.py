"""How the process lives: with its parent, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import websocket

from errors import EngineUnreachable
from sketch import SketchProcess
from sketch.process import STOP_TIMEOUT_S
from tests.sketch.sketch_client import NODES

ROOT = NODES.parents[1]
PARENT = """
import sys
from pathlib import Path
from sketch import SketchProcess
sketch = SketchProcess(nodes=Path(sys.argv[1]))
sketch.start()
print(sketch.url, flush=True)
sys.stdin.read()
"""
STEP_PARENT = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-m", "sketch", *sys.argv[1:]])
signal.pause()
"""


def scratch(place: Path) -> list[Path]:
    """What engines keep of their own below a temporary directory."""
    return [
        found for found in place.rglob("easel-sketch-*") if not found.name.startswith("easel-sketch-handle-")
    ]


def started(code: str, place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A Python process whose stderr ends when the last of its children has ended."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_it_ends_and_tidies_up_when_its_parent_is_killed(tmp_path: Path) -> None:
    with started(PARENT, tmp_path, str(NODES)) as parent:
        assert parent.stdout
        url = parent.stdout.readline().decode().strip()
        assert requests.get(f"{url}/queue", timeout=10).ok
        assert len(scratch(tmp_path)) == 1
        parent.kill()
        parent.communicate(timeout=20)
    assert scratch(tmp_path) == []


def test_it_ends_with_its_parent_even_if_somebody_else_holds_the_pipe(tmp_path: Path) -> None:
    arguments = ["--nodes", str(NODES), "--files", "none.json", "--parent-stdin"]
    with started(STEP_PARENT, tmp_path, *arguments) as parent:
        assert parent.stderr
        assert b"sketch engine on" in parent.stderr.readline()
        parent.kill()
        assert (
            parent.stderr.read() == b""
        )  # ends with the engine, although its standard input is still open here
    assert scratch(tmp_path) == []


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sketch", "--nodes", str(NODES), "--files", "none.json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"sketch engine on http://127.0.0.1:" in process.stderr.readline()
        assert len(scratch(tmp_path)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert scratch(tmp_path) == []


def test_clients_that_do_not_answer_do_not_keep_it_from_ending(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sketch", "--nodes", str(NODES), "--files", "none.json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr
        url = process.stderr.readline().decode().split()[-1].replace("http", "ws")
        sockets = [websocket.create_connection(f"{url}/ws?clientId={name}", timeout=10) for name in "aab"]
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0
        for socket in sockets:
            socket.shutdown()
    assert scratch(tmp_path) == []


def test_given_a_directory_it_keeps_its_files_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sketch", "--nodes", str(NODES), "--files", "none.json"]
    command += ["--data", str(tmp_path / "kept"), "--port-file", str(tmp_path / "port")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        told = process.stderr.readline().decode().strip()
        assert told.endswith(f":{(tmp_path / 'port').read_text()}")
        process.terminate()
        assert process.wait(20) == 0
    assert sorted(found.name for found in (tmp_path / "kept").iterdir()) == ["input", "output", "temp"]


def test_the_handle_starts_a_fresh_one_after_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed engine cannot tidy up
    with SketchProcess(nodes=NODES) as sketch:
        first = sketch.pid
        assert first
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert not sketch.alive()
        sketch.start()
        assert sketch.alive()
        assert sketch.pid != first
        assert requests.get(f"{sketch.url}/queue", timeout=10).ok


def test_one_that_cannot_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineUnreachable, match="did not start"):
        SketchProcess(nodes=tmp_path / "absent.json").start()
