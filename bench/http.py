"""A kept HTTP connection of the standard library, and the counters of a socket."""

from __future__ import annotations

import http.client
import select
import socket
import struct
from collections.abc import Iterable
from urllib.parse import urlsplit

_JSON = {"Content-Type": "application/json"}
_COUNTERS_AT = 120
"""Where Linux's `struct tcp_info` has the bytes that the peer acknowledged and the bytes received, 64 bits each"""


class Http:
    """One connection to the server at `url`, for one thread. No proxy is used, whatever the environment says."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        self._prefix = parts.path.rstrip("/")
        self._name = url
        try:
            self._connection.connect()
        except OSError as error:
            raise RuntimeError(f"{url} cannot be reached: {error}") from error

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The content of a 200 response. Raises RuntimeError with the response for any other status, and if there is
        none."""
        response = self.open(method, path, body)
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"{method} {self._name}{path} failed: {error!r}") from error

    def open(
        self, method: str, path: str, body: bytes | None = None, expected: int = 200
    ) -> http.client.HTTPResponse:
        """The response with the expected status, whose content must be read to its end before the next call."""
        if self._was_closed():
            self._connection.close()  # the request opens it again
        try:
            self._connection.request(method, self._prefix + path, body, _JSON if body is not None else {})
            response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"{method} {self._name}{path} failed: {error!r}") from error
        if response.status != expected:
            raise RuntimeError(
                f"{method} {self._name}{path} gave {response.status}: {response.read()[:500]!r}"
            )
        return response

    def _was_closed(self) -> bool:
        """Whether the server has closed the idle connection. Between two responses there is nothing else to read."""
        sock = self._connection.sock
        if sock is None:
            return False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def socket(self) -> socket.socket | None:
        """The socket, to read its counters; None if the server has closed the connection."""
        return self._connection.sock

    def close(self) -> None:
        self._connection.close()


def wire_bytes(sockets: Iterable[socket.socket | None]) -> int | None:
    """All bytes that these sockets have sent and received so far. None on systems other than Linux."""
    total = 0
    for each in sockets:
        if each is None or not hasattr(socket, "TCP_INFO"):
            return None
        info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS_AT + 16)
        if len(info) < _COUNTERS_AT + 16:
            return None
        total += sum(struct.unpack_from("=QQ", info, _COUNTERS_AT))
    return total
