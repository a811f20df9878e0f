"""HTTP/1.1 over kept connections to one server, in as few steps as ComfyUI's answers need: each picture takes several
calls, and a general HTTP library would be the largest part of the gateway's CPU time."""

from __future__ import annotations

import contextlib
import select
import ssl
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import BadStatusLine, IncompleteRead, LineTooLong, RemoteDisconnected
from typing import IO, cast
from urllib.parse import urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from bounded_socket import BoundedSocket, connect, tls
from deadline import limited

_MAX_LINE_BYTES = 65536
_MAX_HEADERS = 200
_MAX_JOINED_BYTES = 65536
"""A larger body is sent on its own instead of being copied behind its head"""
_WITHOUT_BODY = frozenset((204, 304))


@dataclass(frozen=True)
class Response:
    """`headers` have names in lower case; the values of a repeated one are joined."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class ConnectionPool:
    """Connections to the server of one URL, kept open between calls. Thread-safe.

    Takes no proxies, passwords or certificates from the environment, follows no redirects and requests no compression.
    Every operation keeps to the time limit of its thread (see `deadline`). `headers` and `secret_query` are sent with each
    call; no exception contains them.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        max_kept: int,
        headers: Mapping[str, str] | None = None,
        secret_query: str = "",
    ) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._is_tls else 80)
        self._path = parts.path
        self._connect_timeout_s, self._max_kept = connect_timeout_s, max_kept
        fixed = {"Host": _host_header(parts.netloc), "User-Agent": "easel", "Accept-Encoding": "identity"}
        self._fixed_headers = {**fixed, **(headers or {})}
        self._secret_query = secret_query
        self._context: ssl.SSLContext | None = None
        self._kept: list[_Connection] = []
        weakref.finalize(self, _close_all, self._kept)

    def call(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """The response of one call. `target`: encoded path and query, behind the path of the pool's URL; `timeout_s`: of
        each operation on the socket.

        Raises OSError, HTTPException. If the server closed the connection before it answered, that is a ConnectionError.
        """
        head = self._head(method, target, body, headers or {})
        connection = self._open(timeout_s)
        try:
            connection.send(head, body or b"")
            response, is_reusable = connection.read_response()
        except BaseException:
            connection.close()
            raise
        if is_reusable and len(self._kept) < self._max_kept:
            self._kept.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close the connections that no call uses; a later call opens new ones."""
        _close_all(self._kept)

    def _head(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        if self._secret_query:
            target += ("&" if "?" in target else "?") + self._secret_query
        lines = [f"{method} {self._path}{target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*self._fixed_headers.items(), *headers.items())]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _open(self, timeout_s: float) -> _Connection:
        """A kept connection that the server has not closed, or a new one."""
        while self._kept:
            try:
                connection = self._kept.pop()
            except IndexError:  # another thread has taken it
                break
            if connection.is_idle():
                connection.sock.settimeout(timeout_s)
                return connection
            connection.close()
        sock = self._connect()
        sock.settimeout(timeout_s)
        return _Connection(sock)

    def _connect(self) -> BoundedSocket | ssl.SSLSocket:
        raw = connect(self._host, self._port, limited(self._connect_timeout_s))
        if not self._is_tls:
            return raw
        try:
            if self._context is None:
                self._context = ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)
            return tls(raw, self._host, self._context)
        except BaseException:
            raw.close()
            raise


def _close_all(connections: list[_Connection]) -> None:
    while connections:
        with contextlib.suppress(IndexError):  # another thread has taken it
            connections.pop().close()


class _Connection:
    """One call at a time."""

    def __init__(self, sock: BoundedSocket | ssl.SSLSocket) -> None:
        self.sock = sock
        self._reader = cast(IO[bytes], sock.makefile("rb", _MAX_LINE_BYTES))

    def is_idle(self) -> bool:
        """Whether nothing arrives: the server has neither closed the connection nor sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def send(self, head: bytes, body: bytes) -> None:
        try:
            if len(body) <= _MAX_JOINED_BYTES:
                self.sock.sendall(head + body)
            else:
                self.sock.sendall(head)
                self.sock.sendall(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server that refuses a large body answers before it has read all of it

    def read_response(self) -> tuple[Response, bool]:
        """The response, and whether the connection can be used again."""
        version, status = self._read_status()
        headers = self._read_headers()
        while 100 <= status < 200:
            version, status = self._read_status()
            headers = self._read_headers()
        is_kept = "close" not in (connection := headers.get("connection", "").lower())
        if version == b"HTTP/1.0":
            is_kept = "keep-alive" in connection
        content = b""
        if status in _WITHOUT_BODY:
            pass
        elif headers.get("transfer-encoding", "").lower().endswith("chunked"):
            content = self._read_chunks()
        elif "content-length" in headers:
            content = self._read_exactly(_number(headers["content-length"].encode("latin-1"), 10))
        else:
            content, is_kept = self._reader.read(), False
        return Response(status, headers, content), is_kept

    def _read_status(self) -> tuple[bytes, int]:
        line = self._reader.readline(_MAX_LINE_BYTES + 1)
        if not line:
            raise RemoteDisconnected("the server closed the connection without an answer")
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise BadStatusLine(line[:80].decode("latin-1"))
        return version, int(rest[:3])

    def _read_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(_MAX_HEADERS):
            line = self._read_line()
            if not line:
                return headers
            name, _, value = line.decode("latin-1").partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        raise LineTooLong("headers")

    def _read_chunks(self) -> bytes:
        parts = []
        while size := _number(self._read_line().partition(b";")[0].strip(), 16):
            parts.append(self._read_exactly(size))
            self._read_line()
        self._read_headers()  # trailers
        return b"".join(parts)

    def _read_line(self) -> bytes:
        """A line without its end."""
        line = self._reader.readline(_MAX_LINE_BYTES + 1)
        if not line.endswith(b"\n"):
            raise LineTooLong("line") if len(line) > _MAX_LINE_BYTES else IncompleteRead(line)
        return line.rstrip(b"\r\n")

    def _read_exactly(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise IncompleteRead(data, size - len(data))
        return data

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.close()
            self.sock.close()


def _number(text: bytes, base: int) -> int:
    """Raises BadStatusLine, as for every answer that is not HTTP."""
    if not text.isalnum():
        raise BadStatusLine(text[:80].decode("latin-1"))
    try:
        return int(text, base)
    except ValueError:
        raise BadStatusLine(text[:80].decode("latin-1")) from None


def _host_header(netloc: str) -> str:
    return netloc if netloc.isascii() else netloc.encode("idna").decode("ascii")
