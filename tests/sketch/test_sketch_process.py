"""The process runs as long as its parent, and no longer."""

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
PARENT_WITH_INHERITED_STDIN = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-m", "sketch", *sys.argv[1:]])
signal.pause()
"""


def data_folders(directory: Path) -> list[Path]:
    """The data folders of engines inside a temporary directory."""
    paths = directory.rglob("easel-sketch-*")
    return [path for path in paths if not path.name.startswith("easel-sketch-handle-")]


def started(code: str, directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A Python process whose stderr ends when the last of its children has exited."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_it_exits_and_deletes_its_files_if_its_parent_is_killed(tmp_path: Path) -> None:
    with started(PARENT, tmp_path, str(NODES)) as parent:
        assert parent.stdout
        url = parent.stdout.readline().decode().strip()
        assert requests.get(f"{url}/queue", timeout=60).ok
        assert len(data_folders(tmp_path)) == 1
        parent.kill()
        parent.communicate(timeout=90)
    assert data_folders(tmp_path) == []


def test_it_exits_with_its_parent_even_if_another_process_holds_the_pipe(tmp_path: Path) -> None:
    arguments = ["--nodes", str(NODES), "--files", "none.json", "--parent-stdin"]
    with started(PARENT_WITH_INHERITED_STDIN, tmp_path, *arguments) as parent:
        assert parent.stderr
        assert b"sketch engine on" in parent.stderr.readline()
        parent.kill()
        # stderr ends when the engine exits, although its standard input is still open here.
        assert parent.stderr.read() == b""
    assert data_folders(tmp_path) == []


def test_it_exits_cleanly_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sketch", "--nodes", str(NODES), "--files", "none.json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"sketch engine on http://127.0.0.1:" in process.stderr.readline()
        assert len(data_folders(tmp_path)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    assert data_folders(tmp_path) == []


def test_it_exits_even_if_clients_do_not_close_their_sockets(tmp_path: Path) -> None:
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
    assert data_folders(tmp_path) == []


def test_with_a_data_folder_it_keeps_its_files_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sketch", "--nodes", str(NODES), "--files", "none.json"]
    command += ["--data", str(tmp_path / "kept"), "--port-file", str(tmp_path / "port")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        line = process.stderr.readline().decode().strip()
        assert line.endswith(f":{(tmp_path / 'port').read_text()}")
        process.terminate()
        assert process.wait(90) == 0
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["input", "output", "temp"]


def test_start_starts_a_new_process_if_the_old_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed engine cannot delete its files
    with SketchProcess(nodes=NODES) as sketch:
        first = sketch.pid
        assert first
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert not sketch.alive()
        sketch.start()
        assert sketch.alive()
        assert sketch.pid != first
        assert requests.get(f"{sketch.url}/queue", timeout=60).ok


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="shows the environment of a process")
def test_it_gets_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EASEL_ENGINE_PASSWORD", "EASEL_API_KEYS", "LLAMA_KEY"):
        monkeypatch.setenv(name, "s3cret")
    with SketchProcess(nodes=NODES) as sketch:
        environment = Path(f"/proc/{sketch.pid}/environ").read_text()
    assert "TMPDIR=" in environment
    assert "s3cret" not in environment


def test_an_engine_that_cannot_start_raises(tmp_path: Path) -> None:
    with pytest.raises(EngineUnreachable, match="did not start"):
        SketchProcess(nodes=tmp_path / "absent.json").start()
