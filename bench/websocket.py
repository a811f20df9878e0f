"""A WebSocket on a plain socket with buffered reads: as little work for each message as a client can do."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
from urllib.parse import urlsplit

TEXT, BINARY, _CONTINUED, _CLOSE, _PING, _PONG = 1, 2, 0, 8, 9, 10
_BUFFER_BYTES = 65_536


class WebSocket:
    """One connection to `url`, an http(s) URL with path and query. `socket`: the socket itself, to read its counters.
    Raises RuntimeError if the server refuses or closes it, OSError if the network fails."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self.socket = socket.create_connection((parts.hostname or "", port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme == "https":
            self.socket = ssl.create_default_context().wrap_socket(
                self.socket, server_hostname=parts.hostname
            )
        self._reader = self.socket.makefile("rb", _BUFFER_BYTES)
        self._open(f"{parts.path}?{parts.query}", parts.netloc)

    def _open(self, path: str, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.socket.sendall(request.encode())
        status = self._reader.readline()
        if b" 101 " not in status:
            raise RuntimeError(f"The engine refused a WebSocket: {status!r}")
        while self._reader.readline().strip():
            pass

    def receive(self) -> tuple[int, bytes]:
        """The next message: TEXT or BINARY, and its content."""
        kind, parts = 0, []
        while True:
            first, opcode, content = self._receive_frame()
            if opcode == _PING:
                self._pong(content)
            elif opcode == _CLOSE:
                raise RuntimeError("The engine closed the WebSocket.")
            elif opcode != _PONG:
                kind = kind if opcode == _CONTINUED else opcode
                parts.append(content)
                if first & 0x80:
                    return kind, parts[0] if len(parts) == 1 else b"".join(parts)

    def _receive_frame(self) -> tuple[int, int, bytes]:
        first, length = self._read(2)
        if length == 126:
            (length,) = struct.unpack(">H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._read(8))
        return first, first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        data = self._reader.read(count)
        if len(data) < count:
            raise RuntimeError("The engine ended the WebSocket's connection.")
        return data

    def _pong(self, content: bytes) -> None:
        mask = bytes(4)  # a client must mask; a mask of zeros leaves the content as it is
        self.socket.sendall(bytes([0x80 | _PONG, 0x80 | len(content)]) + mask + content)

    def close(self) -> None:
        self._reader.close()
        self.socket.close()
