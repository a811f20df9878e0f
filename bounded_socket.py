"""TCP and TLS sockets that keep to the time limit of the thread that uses them (see `deadline`), whatever the server
does: a timeout for each single operation never ends if a server sends one byte at a time."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, cast

import certifi

from deadline import limited


class _KeepsTimeLimit:
    """For a socket class: each operation waits no longer than its own timeout and the remaining time."""

    before_recv: Callable[[socket.socket], None] | None = None
    """Called before each read: it returns when something has arrived; what it raises is raised by the read"""
    before_send: Callable[[socket.socket], None] | None = None
    """Called when nothing can be sent at the moment: it returns when something can be; what it raises is raised by the
    sending"""
    _timeout_s: float | None = None
    _applied_s: float | None = None

    def settimeout(self, value: float | None) -> None:
        self._timeout_s = self._applied_s = value
        super().settimeout(value)  # type: ignore[misc]

    def gettimeout(self) -> float | None:
        return self._timeout_s

    def recv(self, *args: Any) -> Any:
        return self._read(super().recv, args)  # type: ignore[misc]

    def recv_into(self, *args: Any) -> Any:
        return self._read(super().recv_into, args)  # type: ignore[misc]

    def send(self, *args: Any) -> Any:
        self._apply_limit()
        return super().send(*args)  # type: ignore[misc]

    def sendall(self, data: Any, *args: Any) -> None:
        if self.before_send is None:
            self._apply_limit()
            super().sendall(data, *args)  # type: ignore[misc]
            return
        self._stop_waiting()
        with memoryview(data).cast("B") as view:
            position = 0
            while position < len(view):
                limited(None)
                try:
                    position += super().send(view[position:], *args)  # type: ignore[misc]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self.before_send(self)  # type: ignore[arg-type]

    def _read(self, read: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        wait = self.before_recv
        if wait is None:
            self._apply_limit()
            return read(*args)
        self._stop_waiting()
        while True:
            wait(self)  # type: ignore[arg-type]
            limited(None)
            try:
                return read(*args)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue  # a part of a TLS record

    def _stop_waiting(self) -> None:
        """A socket with a timeout would wait once more before it reads, which costs as much as the reading."""
        if self._applied_s != 0:
            self._applied_s = 0
            super().settimeout(0)  # type: ignore[misc]

    def _apply_limit(self) -> None:
        if self._timeout_s != 0 and (timeout_s := limited(self._timeout_s)) != self._applied_s:
            self._applied_s = timeout_s
            super().settimeout(timeout_s)  # type: ignore[misc]


class BoundedSocket(_KeepsTimeLimit, socket.socket):
    """A TCP socket"""


class BoundedTlsSocket(_KeepsTimeLimit, ssl.SSLSocket):
    """A TLS socket; for `SSLContext.sslsocket_class`"""

    def do_handshake(self, block: bool = False) -> None:
        self._apply_limit()
        super().do_handshake(block)


Resolve = Callable[[str, int], list[Any]]


def _resolve(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def connect(host: str, port: int, timeout_s: float | None, *, resolve: Resolve = _resolve) -> BoundedSocket:
    """A connected TCP socket with this timeout, which covers looking up the name and all addresses of the host together.
    `resolve`: the results of `getaddrinfo`. Raises OSError."""
    timeout_s = limited(timeout_s)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        addresses = _resolve_within(resolve, host.strip("[]"), port, timeout_s)
    except socket.gaierror:
        # If no file may be opened, the resolver says that there is no such host.
        with open(os.devnull, "rb"):
            raise
    except ValueError:  # an empty or too long part, a NUL
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    last_error: OSError = OSError("the host has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        raw = BoundedSocket(family, kind, protocol)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if deadline is not None:  # an address that does not answer leaves time for the next one
                raw.settimeout(max(0.001, (deadline - time.monotonic()) / (len(addresses) - tried)))
            raw.connect(address)
            raw.settimeout(timeout_s)
            return raw
        except OSError as error:
            last_error = error
            with contextlib.suppress(OSError):
                raw.close()
    raise last_error


def _resolve_within(resolve: Resolve, host: str, port: int, timeout_s: float | None) -> list[Any]:
    """In a thread, because `getaddrinfo` has no timeout: a name server that does not answer holds it for half a minute."""
    if timeout_s is None or _is_address(host):
        return resolve(host, port)
    results: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def run() -> None:
        try:
            results.put(resolve(host, port))
        except (OSError, ValueError) as error:
            results.put(error)

    threading.Thread(target=run, name="resolve", daemon=True).start()
    try:
        result = results.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError(f"looking up {host} timed out") from None
    if isinstance(result, Exception):
        raise result
    return result


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


@functools.cache
def _trusted() -> ssl.SSLContext:
    # With a file, neither SSL_CERT_FILE nor what the system has installed counts.
    return ssl.create_default_context(cafile=certifi.where())


def tls(raw: socket.socket, host: str, context: ssl.SSLContext | None = None) -> BoundedTlsSocket:
    """`raw` with TLS, verified as `context` says, by default against the certificates of certifi. The handshake
    takes at most the socket's timeout and the remaining time. Raises OSError."""
    context = context or _trusted()
    context.sslsocket_class = BoundedTlsSocket
    return cast(BoundedTlsSocket, context.wrap_socket(raw, server_hostname=host))
