"""Reads the messages of a WebSocket. websocket-client makes the connection and sends; its reader takes several system calls
and many times the CPU for each of the dozens of messages that ComfyUI sends for a picture."""

from __future__ import annotations

import socket
import time
from typing import Any

from websocket import ABNF, WebSocketConnectionClosedException, WebSocketProtocolException

_READ_BYTES = 65536
_FIN, _RESERVED, _MASK = 0x80, 0x70, 0x80
_CONTROL = frozenset((ABNF.OPCODE_CLOSE, ABNF.OPCODE_PING, ABNF.OPCODE_PONG))
_KNOWN = _CONTROL | {ABNF.OPCODE_CONT, ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY}


class FrameSocket:
    """A connected socket with a buffer: for websocket-client during the handshake, then for `next_message`."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._unread = bytearray()
        self._opcode: int | None = None
        self._parts: list[bytes] = []
        """Of a message in several frames that is not complete, and its opcode"""
        self.received_at = time.monotonic()
        """When bytes of a message came last, also of one that is not complete: a picture takes long over a slow network.
        Control frames do not count, because a proxy answers pings itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        if not self._unread:
            self._unread += self._raw.recv(_READ_BYTES)
        return self._take(min(size, len(self._unread)))

    def next_message(self) -> tuple[int, bytes]:
        """Opcode and content of the next message or control frame.

        Raises WebSocketProtocolException, WebSocketConnectionClosedException, and what the socket raises. After a timeout
        it can be called again: nothing is lost.
        """
        while True:
            opcode, is_last, content = self._next_frame()
            if opcode in _CONTROL:
                return opcode, content
            self.received_at = time.monotonic()
            if (opcode == ABNF.OPCODE_CONT) != (self._opcode is not None):
                raise WebSocketProtocolException(
                    "a message begins inside another one, or goes on without a beginning"
                )
            self._opcode = opcode if self._opcode is None else self._opcode
            self._parts.append(content)
            if is_last:
                opcode, self._opcode = self._opcode, None
                content = content if len(self._parts) == 1 else b"".join(self._parts)
                self._parts = []
                return opcode, content

    def _next_frame(self) -> tuple[int, bool, bytes]:
        """Opcode, whether it is the last of its message, content."""
        while (size := self._frame_size()) is None or len(self._unread) < sum(size):
            data = self._raw.recv(_READ_BYTES)
            if not data:
                raise WebSocketConnectionClosedException("the server closed the connection")
            self._unread += data
            if self._unread[0] & 0x0F not in _CONTROL:
                self.received_at = time.monotonic()
        head, content = (self._take(count) for count in size)
        opcode, is_last = head[0] & 0x0F, bool(head[0] & _FIN)
        if (
            opcode not in _KNOWN
            or head[0] & _RESERVED
            or head[1] & _MASK
            or (opcode in _CONTROL and not is_last)
        ):
            raise WebSocketProtocolException(f"not a frame of a server: {head.hex()}")
        return opcode, is_last, content

    def _frame_size(self) -> tuple[int, int] | None:
        """The bytes of the head and of the content of the next frame; None if the head is not complete."""
        unread = self._unread
        if len(unread) < 2:
            return None
        length = unread[1] & 0x7F
        head = {126: 4, 127: 10}.get(length, 2)
        if len(unread) < head:
            return None
        return head, length if head == 2 else int.from_bytes(unread[2:head], "big")

    def _take(self, size: int) -> bytes:
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data
