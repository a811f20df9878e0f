"""LLM servers that are started and stopped by commands: systemd units, containers, any program.

Runs argument lists, never a shell. Arguments may contain secrets, so messages contain only a program's name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from errors import StackError, StackRefused, StackUnreachable
from gpu_tenant import Failure, Resident
from llm.drivers import Call
from llm.http import LlmHttp
from llm.parallel import parallel_map
from llm.server import Limits, poll_with_backoff
from llm.templates import fill_path, fill_text
from system_errors import shortage_as

PASSED_VARIABLES = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST",
)
"""The environment variables that are passed to commands; Easel's keys are not among them"""
_MAX_OUTPUT_BYTES = 4096


@dataclass(frozen=True)
class LoadedCheck:
    """The command that checks whether one item is loaded. An exit status outside `exits` is an error. Without
    `free_prints`, exit status 0 means loaded. With it, the output decides: one of `free_prints` means not loaded, any
    other text means loaded."""

    argv: tuple[str, ...]
    exits: tuple[int, ...]
    free_prints: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """The commands of one stack. `health`: the call that succeeds when a loaded item is ready to serve; None: an item is
    ready as soon as it is loaded."""

    items: tuple[str, ...]
    loaded: LoadedCheck
    unload: tuple[str, ...]
    load: tuple[str, ...]
    health: Call | None


@dataclass(frozen=True)
class CommandResult:
    program: str
    status: int
    stdout: str
    stderr: str


class CommandLlmServer:
    """A command that exceeds its time limit is killed together with its children."""

    def __init__(
        self, name: str, commands: Commands, http: LlmHttp, limits: Limits, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._commands = commands
        self._http = http
        self._limits = limits
        self._environment = {key: environment[key] for key in PASSED_VARIABLES if key in environment}

    def health(self) -> None:
        self.list()

    def identity(self, resident: Resident) -> str:
        return resident.id

    def list(self) -> tuple[Resident, ...]:
        residents = [Resident(self.name, item) for item in self._commands.items]
        return tuple(resident for resident in residents if self._is_loaded(resident))

    def busy(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        return None

    def unload(self, residents: Sequence[Resident]) -> None:
        parallel_map(self._unload, residents)

    def load(
        self, residents: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        failures = []
        for resident in residents:
            if is_cancelled():
                break
            try:
                self._load(resident)
            except StackError as error:
                failures.append(Failure(self.name, resident.id, error.message))
        return tuple(failures)

    def _unload(self, resident: Resident) -> None:
        try:
            result = self._run(self._commands.unload, resident, self._limits.unload_s)
        except StackUnreachable:
            return  # a slow stop may still succeed; `list` decides
        if result.status != 0 and self._is_loaded(resident):
            raise self._failed(result)

    def _load(self, resident: Resident) -> None:
        deadline = time.monotonic() + self._limits.load_s
        if not self._is_loaded(resident):
            result = self._run(self._commands.load, resident, self._limits.load_s)
            if result.status != 0:
                raise self._failed(result)
        for _ in poll_with_backoff(deadline):
            if self._is_loaded(resident) and self._is_ready(resident):
                return
        message = f"{self.name}: {resident.id} is not ready after {self._limits.load_s:g} s."
        raise StackUnreachable(message, stack=self.name)

    def _is_ready(self, resident: Resident) -> bool:
        call = self._commands.health
        if call is None:
            return True
        try:
            path = fill_path(call.path, resident)
            return call.is_ok(self._http.send(call.method, path, timeout_s=self._limits.call_s).status)
        except StackUnreachable:
            return False

    def _is_loaded(self, resident: Resident) -> bool:
        check = self._commands.loaded
        result = self._run(check.argv, resident, self._limits.call_s)
        if result.status not in check.exits or (check.free_prints and not result.stdout):
            raise self._failed(result)
        if check.free_prints:
            return result.stdout not in check.free_prints
        return result.status == 0

    def _failed(self, result: CommandResult) -> StackRefused:
        stderr = self._http.sanitize(result.stderr)
        message = f"{self.name}: {result.program} exited with status {result.status}"
        message += f": {stderr}." if stderr else "."
        return StackRefused(message, stack=self.name, status=result.status)

    def _run(self, argv: Sequence[str], resident: Resident, timeout_s: float) -> CommandResult:
        """Output goes to files, not pipes: a server that a command leaves running would keep a pipe open."""
        arguments = [fill_text(argument, resident) for argument in argv]
        program = arguments[0]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(  # noqa: S603 (the owner's own commands)
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                message = f"{self.name}: {program} cannot be run: {error.strerror}."
                raise (shortage_as(StackRefused, error) or StackRefused(message, stack=self.name)) from error
            status = self._wait(process, program, timeout_s)
            return CommandResult(program, status, _read_start(out), _read_start(err))

    def _wait(self, process: subprocess.Popen[bytes], program: str, timeout_s: float) -> int:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            message = f"{self.name}: {program} did not exit within {timeout_s:g} s and was killed."
            raise StackUnreachable(message, stack=self.name) from error


def _read_start(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MAX_OUTPUT_BYTES).decode("utf-8", "replace").strip()
