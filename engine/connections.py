"""HTTP over kept connections to one server: http.client with the time limits of `deadline`. Each picture waits for its call
to ComfyUI, which takes a quarter of the CPU time that requests would need."""

from __future__ import annotations

import contextlib
import select
import ssl
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse
from urllib.parse import quote, urlsplit

from bounded_socket import BoundedSocket, connect, tls
from deadline import limited

_CLOSED_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_KEPT_IN_PATH = "!#$%&'()*+,/:;=?@[]~"
"""What a path may have besides letters and digits; `%` is that of an encoded character"""


@dataclass(frozen=True)
class Response:
    """`headers`: names in any case"""

    status: int
    headers: HTTPMessage
    content: bytes


class ConnectionPool:
    """Connections to the server of one URL, kept open between calls. Thread-safe.

    Takes no proxies, passwords or certificates from the environment, follows no redirects and requests no compression.
    Every operation keeps to the time limit of its thread (see `deadline`). `headers` and `secret_query` are sent with each
    call; no exception contains them. `trusted`: the certificates for TLS, see `tls`.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        max_kept: int,
        headers: Mapping[str, str] | None = None,
        secret_query: str = "",
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._is_tls else 80)
        self._path = quote(parts.path, safe=_KEPT_IN_PATH)
        self._connect_timeout_s, self._max_kept = connect_timeout_s, max_kept
        fixed = {"Host": _host_header(parts.netloc), "User-Agent": "easel", "Accept-Encoding": "identity"}
        self._fixed_headers = {**fixed, **(headers or {})}
        self._secret_query = secret_query
        self._trusted = trusted
        self._kept: list[HTTPConnection] = []
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
        if self._secret_query:
            target += ("&" if "?" in target else "?") + self._secret_query
        connection = self._open(timeout_s)
        try:
            # A server that refuses a large body answers before it has read all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, *_CLOSED_TLS):
                connection.request(
                    method, self._path + target, body, {**self._fixed_headers, **(headers or {})}
                )
            answer = connection.getresponse()
            response = _read(answer, max_bytes)
        except BaseException as error:
            connection.close()
            if isinstance(error, (ConnectionError, *_CLOSED_TLS)):
                # It may be closing all that are as old: who repeats the call gets a new one.
                self.close()
            if isinstance(error, _CLOSED_TLS):
                raise ConnectionResetError("the server closed the connection") from error
            if isinstance(error, ValueError):  # a length below zero
                raise HTTPException("not an answer of HTTP") from None
            raise
        # A server that sends an interim response, such as 103, sends the final one later: for nobody.
        is_complete = connection.sock is not None and answer.isclosed() and response.status >= 200
        if is_complete and len(self._kept) < self._max_kept:
            self._kept.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close the connections that no call uses; a later call opens new ones."""
        _close_all(self._kept)

    def _open(self, timeout_s: float) -> HTTPConnection:
        """A kept connection that the server has not closed, or a new one."""
        while self._kept:
            try:
                connection = self._kept.pop()
            except IndexError:  # another thread has taken it
                break
            if _is_idle(connection):
                connection.sock.settimeout(timeout_s)
                return connection
            connection.close()
        connection = HTTPConnection(self._host, self._port)
        connection.auto_open = 0  # it would connect without our limits
        connection.sock = self._connect()
        connection.sock.settimeout(timeout_s)
        return connection

    def _connect(self) -> BoundedSocket | ssl.SSLSocket:
        raw = connect(self._host, self._port, limited(self._connect_timeout_s))
        if not self._is_tls:
            return raw
        try:
            return tls(raw, self._host, self._trusted)
        except BaseException:
            raw.close()
            raise


def _read(answer: HTTPResponse, max_bytes: int | None) -> Response:
    if len(set(answer.headers.get_all("Content-Length", []))) > 1:
        raise HTTPException("an answer of two lengths")
    return Response(answer.status, answer.headers, answer.read(max_bytes))


def _close_all(connections: list[HTTPConnection]) -> None:
    while connections:
        with contextlib.suppress(IndexError, OSError):  # another thread has taken it
            connections.pop().close()


def _is_idle(connection: HTTPConnection) -> bool:
    """Whether nothing arrives: the server has neither closed the connection nor sent what nobody asked for."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)


def _host_header(netloc: str) -> str:
    return netloc if netloc.isascii() else netloc.encode("idna").decode("ascii")
