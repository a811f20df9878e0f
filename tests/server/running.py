"""A real server: gunicorn with two workers, as `make run` starts it, on a free port with its own state directory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.conftest import ROOT
from tests.processes import command_line
from tests.waiting import TIMEOUT_S, wait_until


class Server:
    """Created by `started`; `log` is everything it has written so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line

    def wait_for(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """The first match in the log, once there is one."""
        wait_until(lambda: re.search(pattern, self.log) or self.process.poll() is not None, timeout_s)
        match = re.search(pattern, self.log)
        assert match, f"{pattern!r} is not in the log:\n{self.log}"
        return match

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in listing if "-m sketch" not in command_line(int(pid))]

    def sketch(self) -> int | None:
        """Process id of its sketch engine, if one runs."""
        listing = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for children in listing for pid in children.read_text().split()]
        return next((pid for pid in pids if "-m sketch" in command_line(pid)), None)

    def draw(self, timeout: float = 60, **fields: Any) -> requests.Response:
        body = {"prompt": "a cat", "size": "256x256", **fields}
        return requests.post(f"{self.url}/v1/images/generations", json=body, timeout=timeout)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def started(state: Path, project: Path = ROOT, **variables: str) -> Iterator[Server]:
    """A server process, which may fail to start; stopped at the end of the block. `project`: another checkout."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {**inherited, "EASEL_PORT": "0", "EASEL_STATE_DIR": str(state), **variables}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    process = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = Server(process)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running(state: Path, project: Path = ROOT, **variables: str) -> Iterator[Server]:
    """A server that responds; stopped at the end of the block."""
    with started(state, project, **variables) as server:
        server.url = server.wait_for(r"Easel is at (http://[^\s\"]+)")[1]
        wait_until(lambda: _responds(server.url))
        yield server


def _responds(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/health", timeout=60).status_code == 200
    return False


@contextlib.contextmanager
def stopped(worker: int) -> Iterator[None]:
    """Stops a worker meanwhile, so that the other one answers all requests."""
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)
