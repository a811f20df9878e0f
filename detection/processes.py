"""The programs of this machine that listen for connections, as far as this user may see them. On Linux only."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

_PROC = Path("/proc")
_LISTENING = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Process:
    """`arguments`: its command line; `folder`: its working directory; `ports`: where it listens."""

    id: int
    parent: int
    arguments: tuple[str, ...]
    folder: Path | None
    ports: frozenset[int]

    @property
    def program(self) -> str:
        """Such as `llama-server`; of an interpreter the file that it runs, such as `main.py`."""
        names = [PurePath(argument).name for argument in self.arguments]
        is_interpreter = bool(names) and re.fullmatch(r"python[\d.]*|node", names[0]) is not None
        # After -c or -e comes the program's text, which is no name and may hold secrets.
        has_file = is_interpreter and not {"-c", "-e"} & set(self.arguments[1:2])
        scripts = [name for name in names[1:] if not name.startswith("-")] if has_file else []
        return (scripts or names or ["?"])[0]


def listening_processes(proc: Path = _PROC) -> tuple[Process, ...]:
    """Those that listen for TCP connections. The workers that a server starts for itself, such as those of Ollama and
    llama-server, are left out: they belong to it."""
    ports_by_socket: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            ports_by_socket |= dict(_listening_sockets((proc / "net" / name).read_text().splitlines()))
    found = {process.id: process for process in _processes(proc, ports_by_socket)}
    return tuple(
        process
        for process in found.values()
        if (parent := found.get(process.parent)) is None or parent.program != process.program
    )


def _listening_sockets(lines: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Socket and port of each line of /proc/net/tcp that is about listening."""
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENING:
            yield fields[9], int(fields[1].rpartition(":")[2], 16)


def _processes(proc: Path, ports_by_socket: dict[str, int]) -> Iterator[Process]:
    if not ports_by_socket:
        return
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if ports := frozenset(_ports(folder / "fd", ports_by_socket)):
                arguments = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
                # The name in brackets may contain anything.
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                yield Process(int(folder.name), parent, tuple(arguments), _link(folder / "cwd"), ports)


def _ports(folder: Path, ports_by_socket: dict[str, int]) -> Iterator[int]:
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            match = _SOCKET.match(os.readlink(entry.path))
            if match and match[1] in ports_by_socket:
                yield ports_by_socket[match[1]]


def _link(path: Path) -> Path | None:
    try:
        return Path(os.readlink(path))
    except OSError:
        return None
