"""Clients that send incomplete requests, many at once, and what an honest client notices meanwhile."""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests

from tests.server.running import Server

HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF_HEAD = HEAD + b"X-Drip: "
HALF_BODY = HEAD + b"Content-Length: 1000\r\n\r\n{"
BODY_WITHOUT_ROUTE = b"POST /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
NEVER_CLOSES = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def address(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return str(parts.hostname), int(parts.port or 0)


def connect(server: Server, data: bytes = b"") -> socket.socket:
    """A connection on which `data` was sent."""
    connection = socket.create_connection(address(server), timeout=60)
    connection.sendall(data)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """What the server sent until it closed the connection; a reset counts as closed."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


@contextlib.contextmanager
def attack(server: Server, data: bytes, count: int) -> Iterator[list[socket.socket]]:
    """`count` connections on each of which `data` was sent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server, data)) for _ in range(count)]


def open_connections(server: Server) -> int:
    """How many connections the server has not closed, including those whose clients have."""
    port, is_open = f"{address(server)[1]:04X}", {"01", "08"}  # ESTABLISHED, CLOSE_WAIT
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(entry[1].endswith(f":{port}") and entry[3] in is_open for entry in entries)


def drip(connections: list[socket.socket]) -> None:
    """Send one more byte on each connection that is still open."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.send(b"a")


def health_times(server: Server, count: int = 15) -> list[float]:
    """How long /health took, in seconds, on a new connection each time."""
    times = []
    for _ in range(count):
        started_at = time.perf_counter()
        assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
        times.append(time.perf_counter() - started_at)
    return times


def summary(times: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    ordered = sorted(times)
    p95 = ordered[int(len(ordered) * 0.95)]
    return f"median {statistics.median(ordered) * 1000:.1f} ms, p95 {p95 * 1000:.1f} ms"
