"""Starts and stops a sketch engine as a child process. Imports nothing that draws or serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from errors import EngineUnreachable
from scratch_folder import ScratchFolder

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.005
_INHERITED = frozenset({"PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH"})
_INHERITED_PREFIXES = ("LC_", "PYTHON", "DYLD_")
"""Environment variables that the engine gets"""


class SketchProcess:
    """A sketch engine as a child process: `with SketchProcess(nodes=…, files={"checkpoints": […]}) as sketch: sketch.url`.

    `nodes`: the content of nodes.json, or the path of such a file. `files`: the names that its loaders list, by folder,
    or the path of a JSON file with them. The engine reads both files again when they change. `render_ms`: duration of a
    sampler. `port` 0 chooses a free port. `folder`: where its pictures are until it ends; by default in the system's folder
    for temporary files. `gpu`: see `simulated_gpu`. Raises EngineUnreachable if the engine does not start. The engine exits
    with this process, even if this process is killed.
    """

    def __init__(
        self,
        *,
        nodes: Path | Mapping[str, Any],
        files: Mapping[str, Sequence[str]] | Path | None = None,
        render_ms: float = 0,
        port: int = 0,
        folder: Path | None = None,
        gpu: Path | None = None,
    ) -> None:
        self._gpu = gpu
        self._nodes, self._files = nodes, files
        self._folder = folder
        self._render_ms, self._port = render_ms, port
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: ScratchFolder | None = None
        self.url = ""
        _processes.add(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process id; None if it was not started or was stopped."""
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, stopping an earlier one first, and return when it listens."""
        self.stop()
        self._scratch = ScratchFolder("easel-sketch-", self._folder)
        port_file = self._scratch.path / "port"
        # start_new_session: Ctrl-C in a terminal goes to the parent only, which then closes the engine's stdin.
        with _fork_lock:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-m", "sketch", *self._arguments(port_file)],
                cwd=ROOT,
                # Uploads are temporary files.
                env={**_environment(), "TMPDIR": str(self._scratch.path)},
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        self.url = f"http://127.0.0.1:{self._wait_for_port(port_file)}"

    def stop(self) -> None:
        """Stop it and wait until it has exited. Does nothing if it is not running."""
        process, self._process = self._process, None
        if process:
            _stop(process)
        if self._scratch:
            self._scratch.remove()
            self._scratch = None

    def disown(self) -> None:
        """Called in a forked child: the engine belongs to the parent, and only the parent may keep its stdin open."""
        process, scratch = self._process, self._scratch
        self._process = self._scratch = None
        if scratch:
            scratch.disown()
        if process and process.stdin:
            process.stdin.close()
            process.returncode = 0  # or Popen would warn about a child that is still running

    def _arguments(self, port_file: Path) -> list[str]:
        nodes = _as_path(self._nodes, port_file.with_name("nodes.json"))
        files = _as_path(self._files or {}, port_file.with_name("files.json"))
        paths = ["--nodes", nodes.resolve(), "--files", files.resolve(), "--port-file", port_file]
        numbers = ["--port", self._port, "--render-ms", self._render_ms]
        # It removes the folder too, in case this process is killed.
        options = ["--scratch", port_file.parent, "--parent-stdin", "--quiet"]
        gpu = ["--gpu", self._gpu.resolve()] if self._gpu else []
        return [str(argument) for argument in [*paths, *numbers, *gpu, *options]]

    def _wait_for_port(self, port_file: Path) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.alive() and time.monotonic() < deadline:
            if port_file.exists():
                return int(port_file.read_text())
            time.sleep(POLL_INTERVAL_S)
        code = self._process.poll() if self._process else None
        self.stop()
        raise EngineUnreachable(f"The sketch engine did not start (exit code {code}); see its output above.")


def _environment() -> dict[str, str]:
    """What a Python program needs: the rest may contain credentials of the engine and of the LLM servers."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


def _as_path(document: Path | Mapping[str, Any], path: Path) -> Path:
    """`document` if it is a path; otherwise `path`, to which it is written as JSON."""
    if isinstance(document, Path):
        return document
    path.write_text(json.dumps(document), "utf-8")
    return path


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# If a process (a gunicorn master) forks while another thread is inside Popen, the child gets copies of Popen's pipes,
# and Popen waits indefinitely for them to close.
_fork_lock = threading.Lock()
_processes: weakref.WeakSet[SketchProcess] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _fork_lock.release()
    for process in list(_processes):
        process.disown()


os.register_at_fork(
    before=_fork_lock.acquire, after_in_parent=_fork_lock.release, after_in_child=_after_fork_in_child
)
