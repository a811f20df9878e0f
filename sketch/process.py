"""Starts a sketch engine as a child process and ends it again. Imports nothing that draws or serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self

from errors import EngineUnreachable

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
LOOK_S = 0.005


class SketchProcess:
    """A sketch engine of one's own: `with SketchServer(nodes=…, files={"checkpoints": […]}) as sketch: sketch.url`.

    `files`: the names its loaders list, by folder; or the path of a JSON file of them, which it reads again when that
    changes. `render_ms`: how long a sampler takes. `port` 0 picks a free one. Raises EngineUnreachable when it does
    not start. It ends with this process, however this process ends.
    """

    def __init__(
        self,
        *,
        nodes: Path,
        files: Mapping[str, Sequence[str]] | Path | None = None,
        render_ms: float = 0,
        port: int = 0,
    ) -> None:
        self._nodes, self._files = nodes, files
        self._render_ms, self._port = render_ms, port
        self._process: subprocess.Popen[bytes] | None = None
        self._place: Path | None = None
        self.url = ""
        _servers.add(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process id, from start to stop."""
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it and returns when it listens; after it died, a second start is a fresh one."""
        self.stop()
        # Not a TemporaryDirectory: a forked child of ours would remove it when it ends.
        self._place = Path(mkdtemp(prefix="easel-sketch-handle-"))
        port_file = self._place / "port"
        # A session of its own: Ctrl-C in a terminal is for its parent, which then closes the pipe that keeps it alive.
        with _forking:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-m", "sketch", *self._arguments(port_file)],
                cwd=ROOT,
                # Its scratch folder lies in ours, so that it goes with ours even when the engine is killed.
                env={**os.environ, "TMPDIR": str(self._place)},
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        self.url = f"http://127.0.0.1:{self._wait_for(port_file)}"

    def stop(self) -> None:
        """Ends it and waits for that; nothing when it does not run."""
        process, self._process = self._process, None
        if process:
            _end(process)
        if self._place:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    def disown(self) -> None:
        """In a forked child: the engine is the parent's, and only the parent shall hold the pipe that it lives by."""
        process, self._process, self._place = self._process, None, None
        if process and process.stdin:
            process.stdin.close()
            process.returncode = 0  # so that its destructor does not warn of a child that is not ours

    def _arguments(self, port_file: Path) -> list[str]:
        files = self._files if isinstance(self._files, Path) else port_file.with_name("files.json")
        if not isinstance(self._files, Path):
            files.write_text(
                json.dumps({folder: list(names) for folder, names in (self._files or {}).items()})
            )
        paths = ["--nodes", self._nodes.resolve(), "--files", files.resolve(), "--port-file", port_file]
        numbers = ["--port", self._port, "--render-ms", self._render_ms]
        return [str(part) for part in [*paths, *numbers, "--parent-stdin"]]

    def _wait_for(self, port_file: Path) -> int:
        give_up = time.monotonic() + START_TIMEOUT_S
        while self.alive() and time.monotonic() < give_up:
            if port_file.exists():
                return int(port_file.read_text())
            time.sleep(LOOK_S)
        code = self._process.poll() if self._process else None
        self.stop()
        raise EngineUnreachable(
            f"The sketch engine did not start (exit code {code}); its own words are above."
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# A process that forks (a gunicorn master) while another of its threads is inside Popen would leave copies of Popen's
# pipes in the child, and Popen would wait for ever for the end of one of them.
_forking = threading.Lock()
_servers: weakref.WeakSet[SketchProcess] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _forking.release()
    for server in list(_servers):
        server.disown()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork_in_child
)
