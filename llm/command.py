"""Servers that are started and stopped as programs: systemd units, containers, anything with a command line.

Runs argument lists, never a shell. An argument may hold a secret, so only a program's name is ever told.
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
from llm.calls import Calls
from llm.drivers import Call
from llm.parallel import ask_all
from llm.server import Limits, poll_with_backoff
from llm.templates import fill_path, fill_text

PASSED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST",
)
"""The environment variables that commands get; Easel's keys are not among them."""
_MOST_OUTPUT = 4096


@dataclass(frozen=True)
class LoadedCheck:
    """Whether one item is loaded. Exit statuses outside `exits` are no answer. With `free_prints` the word that it
    prints decides, any other one meaning loaded; else exit status 0 means loaded."""

    argv: tuple[str, ...]
    exits: tuple[int, ...]
    free_prints: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """`health` is what answers once a loaded item is ready to serve; None: it is ready when it is loaded."""

    items: tuple[str, ...]
    loaded: LoadedCheck
    unload: tuple[str, ...]
    load: tuple[str, ...]
    health: Call | None


@dataclass(frozen=True)
class Ended:
    program: str
    status: int
    printed: str
    complaint: str


class CommandServer:
    """A call that takes longer than its limit is killed with all its children."""

    def __init__(
        self, name: str, commands: Commands, calls: Calls, limits: Limits, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._commands = commands
        self._calls = calls
        self._limits = limits
        self._environment = {key: environment[key] for key in PASSED_ON if key in environment}

    def health(self) -> None:
        self.list()

    def list(self) -> tuple[Resident, ...]:
        residents = [Resident(self.name, item) for item in self._commands.items]
        return tuple(resident for resident in residents if self._is_loaded(resident))

    def busy(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        return None

    def unload(self, residents: Sequence[Resident]) -> None:
        ask_all(self._unload, residents)

    def load(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        failures = []
        for resident in residents:
            try:
                self._load(resident)
            except StackError as error:
                failures.append(Failure(self.name, resident.id, error.message))
        return tuple(failures)

    def _unload(self, resident: Resident) -> None:
        try:
            ended = self._run(self._commands.unload, resident, self._limits.unload_s)
        except StackUnreachable:
            return  # a stop that takes long may still succeed; `list` will tell
        if ended.status != 0 and self._is_loaded(resident):
            raise self._failed(ended)

    def _load(self, resident: Resident) -> None:
        deadline = time.monotonic() + self._limits.load_s
        if not self._is_loaded(resident):
            ended = self._run(self._commands.load, resident, self._limits.load_s)
            if ended.status != 0:
                raise self._failed(ended)
        for _ in poll_with_backoff(deadline):
            if self._is_loaded(resident) and self._is_ready(resident):
                return
        message = f"{self.name}: {resident.id} is not ready after {self._limits.load_s:g} s."
        raise StackUnreachable(message, stack=self.name)

    def _is_ready(self, resident: Resident) -> bool:
        probe = self._commands.health
        if probe is None:
            return True
        try:
            path = fill_path(probe.path, resident)
            return probe.is_ok(self._calls.send(probe.method, path, timeout_s=self._limits.call_s).status)
        except StackUnreachable:
            return False

    def _is_loaded(self, resident: Resident) -> bool:
        question = self._commands.loaded
        ended = self._run(question.argv, resident, self._limits.call_s)
        if ended.status not in question.exits or (question.free_prints and not ended.printed):
            raise self._failed(ended)
        if question.free_prints:
            return ended.printed not in question.free_prints
        return ended.status == 0

    def _failed(self, ended: Ended) -> StackRefused:
        said = self._calls.scrubbed(ended.complaint)
        message = f"{self.name}: {ended.program} ended with {ended.status}{': ' * bool(said)}{said}."
        return StackRefused(message, stack=self.name, status=ended.status)

    def _run(self, argv: Sequence[str], resident: Resident, timeout_s: float) -> Ended:
        """Output goes to files, not pipes: a server that a command leaves behind would hold a pipe open."""
        words = [fill_text(word, resident) for word in argv]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(  # noqa: S603 (the owner's own commands)
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                why = f"{self.name}: {words[0]} cannot be run: {error.strerror}."
                raise StackRefused(why, stack=self.name) from error
            return Ended(words[0], self._wait(process, words[0], timeout_s), _start_of(out), _start_of(err))

    def _wait(self, process: subprocess.Popen[bytes], program: str, timeout_s: float) -> int:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            why = f"{self.name}: {program} did not end within {timeout_s:g} s and was killed."
            raise StackUnreachable(why, stack=self.name) from error


def _start_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MOST_OUTPUT).decode("utf-8", "replace").strip()
