"""A running cluster: Redis, hosts with their engines, and front ends."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from bench.hosts.programs import (
    START_TIMEOUT_S,
    FrontEnd,
    Host,
    Program,
    RedisServer,
    free_port,
    redis_binary,
    wait_until,
)
from scratch_folder import ScratchFolder


@dataclass(frozen=True)
class HostOptions:
    """Of the command line. `redis_server`: the program; None for the usual one. `first_port`: ports from this one on are
    used; None for free ones. `keep`: a folder where everything stays after the run, such as the logs."""

    redis_server: str | None = None
    first_port: int | None = None
    keep: Path | None = None
    quick: bool = False


class Cluster:
    """`with Cluster(options) as cluster:` starts Redis; `add_host` and `add_front` start the rest. `redis_options`: see
    RedisServer. `settings`: more variables of all front ends and hosts."""

    def __init__(
        self,
        options: HostOptions,
        *,
        redis_options: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        name: str = "cluster",
    ) -> None:
        self._options, self._name = options, name
        self._redis_options = redis_options or {}
        self._settings = settings or {}
        self._stack = contextlib.ExitStack()
        self.hosts: list[Host] = []
        self.fronts: list[FrontEnd] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._options.keep:
                self.folder = self._options.keep / self._name
                self.folder.mkdir(parents=True, exist_ok=True)
            else:
                self.folder = stack.enter_context(ScratchFolder("easel-bench-hosts-"))
            self._ports = _ports(self._options.first_port)
            binary = redis_binary(self._options.redis_server)
            self.redis = RedisServer(binary, self.port(), self.folder / "redis", self._redis_options)
            stack.enter_context(self.redis)
            self.redis.wait_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def port(self) -> int:
        """A port that nobody else in this cluster has."""
        return next(self._ports)

    def new_host(
        self,
        *,
        render_ms: float,
        name: str | None = None,
        folder: str | None = None,
        settings: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Host:
        """A host that is not started yet, but is stopped with the cluster."""
        name = name or f"host{len(self.hosts) + 1}"
        host = Host(
            name,
            self.folder / (folder or name),
            {**self._common(), **(settings or {})},
            render_ms=render_ms,
            engine_port=self.port(),
            prefix=prefix,
        )
        self._stack.callback(host.stop)
        self.hosts.append(host)
        return host

    def new_front(self, settings: Mapping[str, str] | None = None) -> FrontEnd:
        """A front end that is not started yet, but is stopped with the cluster."""
        name = f"front{len(self.fronts) + 1}"
        front = FrontEnd(name, self.port(), self.folder / name, {**self._common(), **(settings or {})})
        self._stack.callback(front.stop)
        self.fronts.append(front)
        return front

    def start_all(self, hosts: int, fronts: int = 1, *, render_ms: float) -> None:
        """So many new ones. Returns when they are ready."""
        started: list[Program] = [self.new_host(render_ms=render_ms) for _ in range(hosts)]
        started += [self.new_front() for _ in range(fronts)]
        for program in started:
            program.start()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Until every front end sees every host as ready. Returns the seconds. Raises RuntimeError with the log of what is
        not ready."""
        waited_s = 0.0
        for front in self.fronts:
            waited_s += wait_until(front.answers, f"{front.name} answers", front, timeout_s)
        for host in self.hosts:
            for front in self.fronts:
                waited_s += wait_until(
                    lambda host=host, front=front: is_host_ready(front, host.name),  # type: ignore[misc]
                    f"{front.name} sees that {host.name} is ready",
                    host,
                    timeout_s,
                )
        return waited_s

    def _common(self) -> dict[str, str]:
        return {"EASEL_CLUSTER_REDIS": self.redis.url, **self._settings}


def is_host_ready(front: FrontEnd, name: str) -> bool:
    """False if the front end does not answer, too."""
    with contextlib.suppress(requests.RequestException, LookupError, ValueError):
        return front.host_states().get(name) == "ready"
    return False


def _ports(first: int | None) -> Iterator[int]:
    if first is not None:
        yield from itertools.count(first)
    used: set[int] = set()
    while True:
        port = free_port()
        if port not in used:
            used.add(port)
            yield port
