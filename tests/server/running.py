"""A real server: gunicorn with two workers, as `make run` starts it, on a free port with a state directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from tests.conftest import ROOT


class Server:
    """Started by `running`; `log` is everything it has written so far."""

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

    def wait_for(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """The first place in the log that matches, once there is one."""
        until(lambda: re.search(pattern, self.log) or self.process.poll() is not None, seconds)
        found = re.search(pattern, self.log)
        assert found, f"{pattern!r} did not come; the log:\n{self.log}"
        return found

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
        self.process.wait(40)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Returns once `condition` holds; fails when it does not in time."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.02)


@contextlib.contextmanager
def started(state: Path, **variables: str) -> Iterator[Server]:
    """A server that may not come up at all: see its log and exit status. Ends with the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {**kept, "EASEL_PORT": "0", "EASEL_STATE_DIR": str(state), **variables}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = Server(process)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running(state: Path, **variables: str) -> Iterator[Server]:
    """A server that answers, until the block ends."""
    with started(state, **variables) as server:
        server.url = server.wait_for(r"Easel is at (http://\S+)")[1]
        until(lambda: _answers(server.url))
        yield server


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    return False
