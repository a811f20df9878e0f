"""HTTP over kept connections to one server: http.client with the time limits of `deadline`. Each picture waits for its call
to ComfyUI and each chat for its call to the LLM server; they take a quarter of the CPU time that requests would need."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse
from typing import Any, cast
from urllib.parse import quote, urlsplit

from bounded_socket import BoundedSocket, BoundedTlsSocket, connect, tls
from deadline import limited

_CLOSED_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_CLOSED, _INVALID = "the server closed the connection", "not an answer of HTTP"
_KEPT_IN_PATH = "!#$%&'()*+,/:;=?@[]~"
"""What a path may have besides letters and digits; `%` is that of an encoded character"""
_JOINED_BYTES = 64 * 1024
"""A body that begins with so much or less is sent in one call together with its head"""


@dataclass(frozen=True)
class Response:
    """`headers`: names in any case"""

    status: int
    headers: HTTPMessage
    content: bytes


class _Connection(HTTPConnection):
    """Sends the head of a request and the beginning of its body together: one packet, and the server wakes once."""

    _head = b""
    _is_head_next = False

    def send(self, data: Any) -> None:
        """http.client's name for: send the head, or a part of the body."""
        head, self._head = self._head, b""
        if not head and self._is_head_next:
            self._is_head_next, self._head = False, data
        elif head and len(data) <= _JOINED_BYTES:
            super().send(head + data)
        else:
            if head:
                super().send(head)
            super().send(data)

    def request(self, *args: Any, **options: Any) -> None:
        """As that of http.client."""
        self._is_head_next, self._head = True, b""
        super().request(*args, **options)
        if self._head:
            head, self._head = self._head, b""
            super().send(head)


class OpenResponse:
    """A response whose body is read in parts, straight from the connection. For one thread."""

    def __init__(
        self, connection: HTTPConnection, answer: HTTPResponse, keep: Callable[[HTTPConnection], None]
    ) -> None:
        self._connection, self._answer, self._keep = connection, answer, keep
        self.status, self.headers = answer.status, answer.headers
        self.length = None if answer.chunked else answer.length
        """Bytes of the body as the server has announced them; None if it has not"""
        self._left = self.length
        self._is_complete = self._is_closed = False

    def read1(self, size: int) -> bytes:
        """What has arrived, at least one and at most `size` bytes; empty at the end. Raises OSError, HTTPException; also
        if the connection ends before the body."""
        if self._left is not None:
            size = min(size, self._left)
        # http.client reads on after the announced end, and takes an early end for that of the body.
        try:  # not the context manager, which costs a tenth of forwarding a token
            data = self._answer.read1(size) if size else b""
        except _CLOSED_TLS as error:
            raise ConnectionResetError(_CLOSED) from error
        except ValueError:
            raise HTTPException(_INVALID) from None
        if self._left is not None:
            if self._left and not data:
                raise ConnectionResetError("the connection ended within the body")
            self._left -= len(data)
        self._is_complete = not data
        return data

    def close(self) -> None:
        """Keep the connection for the next call if the body was read to its end; else close it, so that the server stops
        its work. May be called repeatedly."""
        if self._is_closed:
            return
        self._is_closed = True
        self._answer.close()
        if self._is_complete and self.status >= 200:
            self._keep(self._connection)
        else:
            self._connection.close()


class ConnectionPool:
    """Connections to the server of one URL, kept open between calls. Thread-safe.

    Takes no proxies, passwords or certificates from the environment, follows no redirects and requests no compression.
    Every operation keeps to the time limit of its thread (see `deadline`). `headers` and `secret_query` are sent with each
    call; no exception contains them. `trusted`: the certificates for TLS, see `tls`. `max_idle_s`: a connection that was
    idle for longer is not used again; below the limit of the server, it never closes one just when a request is sent.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        max_kept: int,
        max_idle_s: float = math.inf,
        headers: Mapping[str, str] | None = None,
        secret_query: str = "",
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._is_tls else 80)
        self._path = quote(parts.path, safe=_KEPT_IN_PATH)
        self._connect_timeout_s, self._max_kept, self._max_idle_s = connect_timeout_s, max_kept, max_idle_s
        fixed = {"Host": _host_header(parts.netloc), "User-Agent": "easel", "Accept-Encoding": "identity"}
        self._fixed_headers = {**fixed, **(headers or {})}
        self._secret_query = secret_query
        self._trusted = trusted
        self._kept: list[tuple[HTTPConnection, float]] = []
        """With the time since which each is idle"""
        weakref.finalize(self, _close_all, self._kept)

    def call(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> Response:
        """The response of one call. `target`: encoded path and query, behind the path of the pool's URL; `timeout_s`: of
        each operation on the socket. Of a longer body only the first `max_bytes` are read.

        Raises OSError, HTTPException. If the server closed the connection before it answered, that is a ConnectionError.
        """
        connection, answer = self._request(method, target, timeout_s=timeout_s, body=body, headers=headers)
        with self._closing_on_error(connection):
            response = Response(answer.status, answer.headers, answer.read(max_bytes))
        # A server that sends an interim response, such as 103, sends the final one later: for nobody.
        if answer.isclosed() and response.status >= 200:
            self._keep(connection)
        else:
            connection.close()
        return response

    def open(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float,
        body: Iterable[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        before_recv: Callable[[socket.socket], None] | None = None,
        before_send: Callable[[socket.socket], None] | None = None,
    ) -> OpenResponse:
        """As `call`, but the body of the response is read by the caller. `before_recv` is called with the connection's
        socket before each read from it, `before_send` when it takes no more bytes at the moment; what they raise ends the
        call. A `body` in parts needs a Content-Length."""
        connection, answer = self._request(
            method,
            target,
            timeout_s=timeout_s,
            body=body,
            headers=headers,
            before_recv=before_recv,
            before_send=before_send,
        )
        return OpenResponse(connection, answer, self._keep)

    def _request(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float,
        body: Iterable[bytes] | bytes | None,
        headers: Mapping[str, str] | None,
        before_recv: Callable[[socket.socket], None] | None = None,
        before_send: Callable[[socket.socket], None] | None = None,
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request and read the head of its response."""
        if self._secret_query:
            target += ("&" if "?" in target else "?") + self._secret_query
        connection = self._open(timeout_s)
        bounded = cast(Any, connection.sock)
        bounded.before_recv, bounded.before_send = before_recv, before_send
        with self._closing_on_error(connection):
            # A server that refuses a large body answers before it has read all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, *_CLOSED_TLS):
                connection.request(
                    method, self._path + target, body, {**self._fixed_headers, **(headers or {})}
                )
            answer = connection.getresponse()
            if len(set(answer.headers.get_all("Content-Length", []))) > 1:
                raise HTTPException("an answer of two lengths")
            return connection, answer

    @contextlib.contextmanager
    def _closing_on_error(self, connection: HTTPConnection) -> Iterator[None]:
        try:
            with _known_errors():
                yield
        except BaseException as error:
            connection.close()
            if isinstance(error, ConnectionError):
                # The server may be closing all that are as old: who repeats the call gets a new one.
                self.close()
            raise

    def close(self) -> None:
        """Close the connections that no call uses; a later call opens new ones."""
        _close_all(self._kept)

    def _keep(self, connection: HTTPConnection) -> None:
        self._close_old()
        if connection.sock is not None and len(self._kept) < self._max_kept:
            bounded = cast(Any, connection.sock)
            bounded.before_recv = bounded.before_send = None
            self._kept.append((connection, time.monotonic()))
        else:
            connection.close()

    def _close_old(self) -> None:
        """Close those at the beginning that were idle for too long: the newest are used first, so they would stay open."""
        now = time.monotonic()
        with contextlib.suppress(IndexError):  # other threads take them, too
            while now - self._kept[0][1] > self._max_idle_s:
                self._kept.pop(0)[0].close()

    def _open(self, timeout_s: float) -> HTTPConnection:
        """A kept connection that the server has not closed, or a new one."""
        while self._kept:
            try:
                connection, idle_since = self._kept.pop()
            except IndexError:  # another thread has taken it
                break
            if time.monotonic() - idle_since <= self._max_idle_s and _is_idle(connection):
                connection.sock.settimeout(timeout_s)
                return connection
            connection.close()
        connection = _Connection(self._host, self._port)
        connection.auto_open = 0  # it would connect without our limits
        connection.sock = self._connect()
        connection.sock.settimeout(timeout_s)
        return connection

    def _connect(self) -> BoundedSocket | BoundedTlsSocket:
        raw = connect(self._host, self._port, limited(self._connect_timeout_s))
        if not self._is_tls:
            return raw
        try:
            return tls(raw, self._host, self._trusted)
        except BaseException:
            raw.close()
            raise


@contextlib.contextmanager
def _known_errors() -> Iterator[None]:
    """A TLS connection that the server closes is a ConnectionError, and a length below zero, for which http.client raises
    ValueError, an HTTPException."""
    try:
        yield
    except _CLOSED_TLS as error:
        raise ConnectionResetError(_CLOSED) from error
    except ValueError as error:
        if isinstance(error, OSError):  # such as a certificate that is not trusted
            raise
        raise HTTPException(_INVALID) from None


def _close_all(connections: list[tuple[HTTPConnection, float]]) -> None:
    while connections:
        with contextlib.suppress(IndexError, OSError):  # another thread has taken it
            connections.pop()[0].close()


def _is_idle(connection: HTTPConnection) -> bool:
    """Whether nothing arrives: the server has neither closed the connection nor sent what nobody asked for."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)


def _host_header(netloc: str) -> str:
    return netloc if netloc.isascii() else netloc.encode("idna").decode("ascii")
