"""The units of deploy/systemd with systemd's own programs, and what Easel tells a service manager.

systemd itself does not run in the tests: `systemd-socket-activate` gives the socket, and a socket of the test listens for
messages."""

from __future__ import annotations

import configparser
import contextlib
import os
import plistlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from server import GRACEFUL_TIMEOUT_S
from settings import SETTINGS_BY_NAME
from tests.conftest import ROOT
from tests.processes import free_port, is_alive
from tests.server.running import Server, started
from tests.waiting import TIMEOUT_S, wait_until

UNITS = ROOT / "deploy" / "systemd"
MAX_EXPOSURE = {"easel.service": 1.8, "comfyui.service": 2.0}
"""As `systemd-analyze security` counts it, from 0 to 10"""
RUN = [sys.executable, "-m", "easel", "run"]


def read_unit(path: Path) -> configparser.ConfigParser:
    """The last of several values of a key."""
    unit = configparser.ConfigParser(
        interpolation=None, strict=False, delimiters=("=",), comment_prefixes=("#",)
    )
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read_string(path.read_text())
    return unit


# --- the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["system", "user"])
def test_systemd_has_nothing_to_object(scope: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed, so the units were NOT verified")
    folder = UNITS if scope == "system" else UNITS / "user"
    files = [tmp_path / path.name for path in folder.iterdir() if path.is_file()]
    assert len(files) >= 2
    for file in files:
        # The programs are not installed here.
        file.write_text(
            re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (folder / file.name).read_text())
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--{scope}", *files],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    # An unknown key is a line, and status 0.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MAX_EXPOSURE)
def test_a_unit_is_hardened(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed, so the hardening was NOT measured")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / name],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MAX_EXPOSURE[name]


@pytest.mark.parametrize("folder", [UNITS, UNITS / "user"], ids=["system", "user"])
def test_the_units_fit_the_server(folder: Path) -> None:
    service, listener = read_unit(folder / "easel.service"), read_unit(folder / "easel.socket")
    assert service["Service"]["Type"] == "notify"
    assert service["Service"]["KillMode"] == "mixed"
    assert int(service["Service"]["TimeoutStopSec"]) > 2 * GRACEFUL_TIMEOUT_S
    host, port = SETTINGS_BY_NAME["host"].default, SETTINGS_BY_NAME["port"].default
    assert listener["Socket"]["ListenStream"] == f"{host}:{port}"


def test_comfyui_finds_the_folders_that_it_does_not_make() -> None:
    service = read_unit(UNITS / "comfyui.service")["Service"]
    base = re.search(r"--base-directory (\S+)", service["ExecStart"])
    database = re.search(r"--database-url sqlite:///(\S+)", service["ExecStart"])
    assert base
    assert database
    made = [f"/var/lib/{name}" for name in service["StateDirectory"].split()]
    assert {base[1], f"{base[1]}/custom_nodes"} == set(made)
    assert database[1].startswith(f"{base[1]}/")


def test_the_plist_of_launchd_fits_the_server() -> None:
    plist = plistlib.loads((ROOT / "deploy/launchd/easel.plist").read_bytes())
    assert plist["ProgramArguments"][1:] == ["run"]
    assert plist["ExitTimeOut"] > 2 * GRACEFUL_TIMEOUT_S
    assert plist["KeepAlive"] == {"SuccessfulExit": False}


# --- messages to the service manager ---------------------------------------------------------------


class Manager:
    """Stands in for systemd: what a service tells it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def message(self, timeout_s: float = TIMEOUT_S) -> str:
        """The next one. Raises TimeoutError."""
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_ready_is_told_when_requests_are_answered_and_stopping_when_it_stops(
    manager: Manager, tmp_path: Path
) -> None:
    with started(tmp_path / "state", NOTIFY_SOCKET=str(manager.path)) as server:
        ready, _, status = manager.message().partition("\nSTATUS=Easel is at ")
        assert ready == "READY=1"
        server.url = status
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
        assert server.workers() != []
        server.process.send_signal(signal.SIGTERM)
        assert manager.message() == "STOPPING=1"
        assert server.process.wait(60) == 0
    with pytest.raises(TimeoutError):
        manager.message(0.1)


def test_a_server_that_cannot_start_is_never_ready(manager: Manager, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with started(tmp_path / "state", NOTIFY_SOCKET=str(manager.path), EASEL_PORT=port) as server:
            assert server.process.wait(60) == 1
    with pytest.raises(TimeoutError):
        manager.message(0.1)


# --- sockets of systemd ----------------------------------------------------------------------------


@contextlib.contextmanager
def socket_activated(listen: str, *command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`command` as systemd-socket-activate starts it, at the first connection."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("systemd-socket-activate is not installed, so sockets of systemd were NOT tested")
    given = [f"--setenv={name}={value}" for name, value in variables.items()]
    # Of the environment only PATH and a few others are passed on.
    process = subprocess.Popen(
        ["systemd-socket-activate", f"--listen={listen}", *given, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(90)
        assert process.stdout is not None
        process.stdout.close()


def connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10):
        pass


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError):
        connect(port)
        return True
    return False


def test_a_public_socket_needs_a_public_host(tmp_path: Path) -> None:
    port = free_port()
    with socket_activated(f"0.0.0.0:{port}", *RUN, EASEL_STATE_DIR=str(tmp_path / "state")) as process:
        server = Server(process)
        wait_until(lambda: is_listening(port))
        server.wait_for(
            r"settings.invalid: The socket that systemd opened .* listens on 0\.0\.0\.0.*EASEL_HOST=0\.0\.0\.0"
        )
        assert process.wait(60) == 1


def test_a_unix_socket_of_systemd_needs_no_port(tmp_path: Path) -> None:
    path = tmp_path / "easel.sock"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        variables = {
            "EASEL_STATE_DIR": str(tmp_path / "state"),
            "EASEL_PORT": str(other.getsockname()[1]),
            "EASEL_WORKERS": "1",
        }
        with socket_activated(str(path), *RUN, **variables) as process:
            server = Server(process)
            wait_until(path.exists)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(TIMEOUT_S)
                client.connect(str(path))
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                server.wait_for(f"Easel is at unix:{path}")
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_public_socket_needs_keys(tmp_path: Path) -> None:
    port = free_port()
    variables = {"EASEL_STATE_DIR": str(tmp_path / "state"), "EASEL_HOST": "0.0.0.0"}
    with socket_activated(f"0.0.0.0:{port}", *RUN, **variables) as process:
        server = Server(process)
        wait_until(lambda: is_listening(port))
        server.wait_for(r"Listening on 0\.0\.0\.0 without API keys")
        assert process.wait(60) == 1


RESTARTS = 10 if os.environ.get("EASEL_TEST_INSTALL") else 1
RESTARTING = 'while sh -c "export LISTEN_PID=\\$\\$; exec \\"\\$@\\"" sh "$@"; do :; done'
"""Starts a program again and again with the same socket, as systemd does"""


class SteadyClient:
    """Sends a request every few milliseconds, each over a new connection, until it is stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def wait_for_more(self) -> None:
        answered = len(self.answers)
        wait_until(lambda: len(self.answers) > answered + 50)

    def _run(self) -> None:
        while not self._stopping.wait(0.005):
            try:
                self.answers.append(requests.get(self._url, timeout=TIMEOUT_S).status_code)
            except requests.RequestException as error:
                self.failures.append(repr(error))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_restart_refuses_no_connection(tmp_path: Path) -> None:
    port = free_port()
    variables = {"EASEL_STATE_DIR": str(tmp_path / "state"), "EASEL_PORT": str(port)}
    with socket_activated(f"127.0.0.1:{port}", "sh", "-c", RESTARTING, "sh", *RUN, **variables) as process:
        server = Server(process)
        wait_until(lambda: is_listening(port))
        server.wait_for("Easel is at")
        client = SteadyClient(f"http://127.0.0.1:{port}/health")
        try:
            for restarts in range(1, RESTARTS + 1):
                client.wait_for_more()
                [easel] = children(process.pid)
                os.kill(easel, signal.SIGTERM)
                wait_until(lambda n=restarts: server.log.count("Easel is at") > n)  # type: ignore[misc]
            client.wait_for_more()
        finally:
            client.stop()
            [easel] = children(process.pid)
            process.kill()  # the shell first, so that it starts nothing more
            os.kill(easel, signal.SIGTERM)
            wait_until(lambda: not is_alive(easel))
        assert client.failures == []
        assert set(client.answers) == {200}
