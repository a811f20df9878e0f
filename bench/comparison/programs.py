"""The compared programs: each installed into an environment of its own, and started as its documentation says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from bench.clients import session
from bench.server import ROOT

PROXY, BROKER = "comfy-api-proxy==0.1.6", "gpu-broker==0.5.0"
_BROKER_PYTHONS = ("python3.12", "python3.13", "python3.14")
STOP_TIMEOUT_S = 60.0
_START_TIMEOUT_S, _POLL_S = 120.0, 0.005


@dataclass(frozen=True)
class Environment:
    """A virtual environment. `install_s`: how long pip took; `mb`: what it put there, in 10^6 bytes."""

    bin: Path
    install_s: float
    mb: float
    python: str


def install(folder: Path, python: str, requirement: str) -> Environment:
    """A new environment in `folder` with one requirement. Raises CalledProcessError."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    before = _size(folder)
    started_at = time.perf_counter()
    pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run([*pip, requirement], check=True)
    elapsed_s = time.perf_counter() - started_at
    version = subprocess.run(
        [folder / "bin/python", "--version"], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    return Environment(folder / "bin", elapsed_s, (_size(folder) - before) / 1e6, version)


def broker_python() -> str | None:
    """A Python that gpu-broker runs with; None if this machine has none."""
    named = os.environ.get("COMPARISON_PYTHON")
    for name in (named,) if named else _BROKER_PYTHONS:
        path = shutil.which(name)
        if (
            path
            and not subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True).returncode
        ):
            return path
    return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass
class Program:
    """A server process that can be stopped, killed and started again. `ready`: a path that answers 200 once it serves.
    `token`: the one that its log names, if any."""

    command: Sequence[str | Path]
    url: str
    ready: str
    log: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    token: str = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()

    def start(self) -> float:
        """Start it. Returns the seconds until it served."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("EASEL_", "PYTHON"))
        }
        started_at = time.perf_counter()
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                list(map(str, self.command)),
                env={**kept, **self.variables},
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        with session() as http:
            while self._process.poll() is None and time.perf_counter() < started_at + _START_TIMEOUT_S:
                if self._serves(http):
                    return time.perf_counter() - started_at
                time.sleep(_POLL_S)
        if self._process.poll() is None:
            self.kill()
        raise RuntimeError(
            f"{self.command[0]} did not start:\n{self.log.read_text('utf-8', 'replace')[-2000:]}"
        )

    def _serves(self, http: requests.Session) -> bool:
        if found := re.search(r"token=([\w-]+)", self.log.read_text("utf-8", "replace")):
            self.token = found[1]
        try:
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            return http.get(self.url + self.ready, headers=headers, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def stop(self) -> float | None:
        """SIGTERM to its first process, as a service manager does. Returns the seconds until it had ended; None if it had
        not after STOP_TIMEOUT_S."""
        started_at = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        return time.perf_counter() - started_at

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        with session() as http:
            if self.token:
                http.headers["Authorization"] = f"Bearer {self.token}"
            return http.request(method, self.url + path, json=body, timeout=120, **options)


def easel(env: Environment, folder: Path, settings: Mapping[str, str]) -> Program:
    """`easel run` with its data in `folder`."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "easel.yaml").touch()
    variables = {"EASEL_CONFIG": str(folder / "easel.yaml"), "EASEL_STATE_DIR": str(folder / "state")}
    command = [env.bin / "easel", "run", "--port", str(port)]
    return Program(command, f"http://127.0.0.1:{port}", "/health", folder / "log", {**variables, **settings})


def proxy(env: Environment, folder: Path, engine_url: str, *options: str) -> Program:
    """`comfy-api-proxy` in front of an engine."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [env.bin / "comfy-api-proxy", "--comfyui", engine_url, "--port", str(port), *options]
    return Program(command, f"http://127.0.0.1:{port}", "/api/v2/health", folder / "log")


def broker(env: Environment, folder: Path) -> Program:
    """`gpu-broker demo` without its simulated users."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [env.bin / "gpu-broker", "demo", "--quiet", "--no-browser", "--port", str(port)]
    variables = {"HOME": str(folder), "TMPDIR": str(folder)}
    return Program(command, f"http://127.0.0.1:{port}", "/v1/status", folder / "log", variables)


EASEL_SOURCE = str(ROOT)
THIS_PYTHON = sys.executable
