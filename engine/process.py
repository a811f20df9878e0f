"""ComfyUI's process: a systemd unit, a Docker container, or a command of the owner's. Starts it and reports its
state. Never stops it, so that ComfyUI keeps its page and its queue while its models are unloaded."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errors import EngineStartFailed, shorten
from system_errors import shortage_as

log = logging.getLogger("easel.engine")

Kind = Literal["none", "systemd", "docker", "command"]
ProcessState = Literal["running", "starting", "exited", "absent"]
_STATE_TIMEOUT_S = 2.0
_START_TIMEOUT_S = 60.0
_STATES: Mapping[str, ProcessState] = {
    "active": "running",
    "running": "running",
    "activating": "starting",
    "restarting": "starting",
    "created": "exited",
    "inactive": "exited",
    "failed": "exited",
    "deactivating": "exited",
    "exited": "exited",
    "dead": "exited",
    "paused": "exited",
}
"""The states of systemctl and docker -> those of Easel's status"""


@dataclass(frozen=True)
class EngineProcess:
    """`name` is the unit or the container; `argv` the command, which runs in `folder` and logs to a file there."""

    kind: Kind = "none"
    name: str = ""
    argv: tuple[str, ...] = ()
    folder: Path = Path()
    hidden_variables: frozenset[str] = frozenset()
    """Environment variables that the command, systemctl and docker do not get, in addition to EASEL_*"""

    @classmethod
    def from_setting(
        cls, start: Mapping[str, Any], folder: Path, hidden_variables: Iterable[str] = ()
    ) -> EngineProcess:
        """From the setting `engine.start`: {}, {systemd: UNIT}, {docker: CONTAINER} or {command: [ARG, …]}."""
        hidden = frozenset(hidden_variables)
        if "systemd" in start:
            return cls("systemd", start["systemd"], hidden_variables=hidden)
        if "docker" in start:
            return cls("docker", start["docker"], hidden_variables=hidden)
        if "command" in start:
            argv = tuple(start["command"])
            return cls("command", Path(argv[0]).name, argv, folder, hidden)
        return cls()

    @property
    def can_start(self) -> bool:
        return self.kind != "none"

    def state(self) -> ProcessState:
        """The state of the process; "absent" also if it cannot be found out. Takes at most 2 s, never raises."""
        if self.kind == "systemd":
            return _STATES.get(
                _output_of(["systemctl", "is-active", self.name], self._environment()), "absent"
            )
        if self.kind == "docker":
            output = _output_of(
                ["docker", "inspect", "-f", "{{.State.Status}}", self.name], self._environment()
            )
            return _STATES.get(output, "absent")
        if self.kind == "command":
            return "running" if self._pid_alive() else "exited"
        return "absent"

    def start(self) -> None:
        """Start the process, unless it runs; returns before ComfyUI answers. Raises EngineStartFailed."""
        log.warning("starting ComfyUI: %s %s", self.kind, self.name)
        if self.kind == "systemd":
            _run(["systemctl", "start", self.name], self._environment())
        elif self.kind == "docker":
            _run(["docker", "start", self.name], self._environment())
        elif self.kind == "command" and not self._pid_alive():
            self._spawn()

    # --- kind "command" ----------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.folder / "engine.pid"

    def _spawn(self) -> None:
        """In its own session: the process outlives the worker that started it."""
        try:
            with open(self.folder / "engine.log", "ab") as output:
                process = subprocess.Popen(  # noqa: S603  the owner's own command
                    self.argv,
                    cwd=self.folder,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise (
                shortage_as(EngineStartFailed, error)
                or EngineStartFailed(f"{self.name} cannot be started: {error.strerror}.")
            ) from error
        process.returncode = 0  # nothing waits for it; `_pid_alive` detects its end by the pid
        # A command that has already exited may have left ComfyUI running, as a start script does.
        with contextlib.suppress(OSError):
            self._pid_file.write_text(f"{process.pid} {_start_time(process.pid)}")

    def _environment(self) -> dict[str, str]:
        """This process's environment without Easel's settings and the LLM servers' keys."""
        hidden = self.hidden_variables | {name for name in os.environ if name.startswith("EASEL_")}
        return {name: value for name, value in os.environ.items() if name not in hidden}

    def _pid_alive(self) -> bool:
        """Whether the process that was started still runs; its pid may meanwhile belong to another process."""
        with contextlib.suppress(OSError, ValueError):
            pid, start_time = self._pid_file.read_text().split()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)
            return _start_time(int(pid)) == start_time
        return False


def _start_time(pid: int) -> str:
    """When the process started, in clock ticks, which tells it from another with the same pid; "-" without /proc.
    Raises ProcessLookupError if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        os.kill(pid, 0)
        return "-"
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]


def _output_of(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the command prints; empty if it cannot run or takes too long."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        result = subprocess.run(  # noqa: S603
            argv, capture_output=True, text=True, timeout=_STATE_TIMEOUT_S, check=False, env=environment
        )
        return result.stdout.strip()
    return ""


def _run(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        result = subprocess.run(  # noqa: S603
            argv, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False, env=environment
        )
    except FileNotFoundError as error:
        raise EngineStartFailed(
            f"ComfyUI cannot be started: the program {argv[0]!r} was not found."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EngineStartFailed(f"`{' '.join(argv)}` took longer than {_START_TIMEOUT_S:g} s.") from error
    if result.returncode != 0:
        raise EngineStartFailed(
            f"`{' '.join(argv)}` exited with {result.returncode}: {shorten(result.stderr.strip(), 200)}"
        )
