"""Where ComfyUI's process lives: a systemd unit, a container, or a command of the owner's. Starts it and says how it is;
never stops it, for it keeps its page and its queue while its models are out."""

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

log = logging.getLogger("easel.engine")

Kind = Literal["none", "systemd", "docker", "command"]
ProcessState = Literal["running", "starting", "exited", "absent"]
_LOOK_S = 2.0
_START_S = 60.0
_WORDS: Mapping[str, ProcessState] = {
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
"""What systemctl and docker say, in the words of our status"""


@dataclass(frozen=True)
class EngineProcess:
    """`name` is the unit or the container; `argv` the command, which runs in `folder` and is logged to a file there."""

    kind: Kind = "none"
    name: str = ""
    argv: tuple[str, ...] = ()
    folder: Path = Path()
    secrets: frozenset[str] = frozenset()
    """Variables that a command does not get to see, beside our own settings"""

    @classmethod
    def of(cls, start: Mapping[str, Any], folder: Path, secrets: Iterable[str] = ()) -> EngineProcess:
        """From the setting `engine.start`: {}, {systemd: UNIT}, {docker: CONTAINER} or {command: [ARG, …]}."""
        if "systemd" in start:
            return cls("systemd", start["systemd"])
        if "docker" in start:
            return cls("docker", start["docker"])
        if "command" in start:
            argv = tuple(start["command"])
            return cls("command", Path(argv[0]).name, argv, folder, frozenset(secrets))
        return cls()

    @property
    def can_start(self) -> bool:
        return self.kind != "none"

    def state(self) -> ProcessState:
        """How the process is; "absent" also when nobody here can tell. Takes 2 s at most, never raises."""
        if self.kind == "systemd":
            word = _said(["systemctl", "is-active", self.name])
            return "absent" if word == "unknown" else _WORDS.get(word, "absent")
        if self.kind == "docker":
            return _WORDS.get(_said(["docker", "inspect", "-f", "{{.State.Status}}", self.name]), "absent")
        if self.kind == "command":
            return "running" if self._pid_alive() else "exited"
        return "absent"

    def start(self) -> None:
        """Start it, unless it is up; returns before it answers. Raises EngineStartFailed."""
        log.warning("starting ComfyUI: %s %s", self.kind, self.name)
        if self.kind == "systemd":
            _run(["systemctl", "start", self.name])
        elif self.kind == "docker":
            _run(["docker", "start", self.name])
        elif self.kind == "command" and not self._pid_alive():
            self._spawn()

    # --- a command of the owner's ------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.folder / "engine.pid"

    def _spawn(self) -> None:
        """In a session of its own: it outlives the worker that happened to start it."""
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
            raise EngineStartFailed(f"{self.name} cannot be started: {error.strerror}.") from error
        process.returncode = 0  # nobody waits for it; its end is seen by its pid
        with contextlib.suppress(
            OSError
        ):  # one that is through already may have left ComfyUI behind, as a script does
            self._pid_file.write_text(f"{process.pid} {_started_at(process.pid)}")

    def _environment(self) -> dict[str, str]:
        """Ours without our own settings and the LLM servers' keys, which are nobody else's business."""
        hidden = self.secrets | {name for name in os.environ if name.startswith("EASEL_")}
        return {name: value for name, value in os.environ.items() if name not in hidden}

    def _pid_alive(self) -> bool:
        """Whether the process that we started lives: the same number may be another process by now."""
        with contextlib.suppress(OSError, ValueError):
            pid, started = self._pid_file.read_text().split()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)
            return _started_at(int(pid)) == started
        return False


def _started_at(pid: int) -> str:
    """Something that only this process has: its start in clock ticks, or "-" where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        os.kill(pid, 0)
        return "-"
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]


def _said(argv: Sequence[str]) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_LOOK_S, check=False)  # noqa: S603
        return done.stdout.strip()
    return ""


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_START_S, check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise EngineStartFailed(f"There is no {argv[0]} here to start ComfyUI with.") from error
    except subprocess.TimeoutExpired as error:
        raise EngineStartFailed(f"`{' '.join(argv)}` took longer than {_START_S:g} s.") from error
    if done.returncode != 0:
        raise EngineStartFailed(
            f"`{' '.join(argv)}` ended with {done.returncode}: {shorten(done.stderr.strip(), 200)}"
        )
