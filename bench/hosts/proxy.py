"""A TCP proxy on this machine that stops forwarding in one direction, as a broken network does: the connections stay open
and nobody is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_CHUNK = 65_536


class OneWayProxy:
    """`with OneWayProxy(port, target_port) as proxy:` connects clients of `port` with `target_port`, both of 127.0.0.1."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port, self._target_port = port, target_port
        self._to_target, self._to_client = threading.Event(), threading.Event()
        self.heal()
        self._sockets: list[socket.socket] = []
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self.heal()  # threads that wait go on and see that it is closed
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._sockets:
            _end(each)

    def drop_to_target(self) -> None:
        """What clients send is held back from now on."""
        self._to_target.clear()

    def drop_to_client(self) -> None:
        """What the target sends is held back from now on."""
        self._to_client.clear()

    def heal(self) -> None:
        """Everything that was held back is sent, as TCP does after a pause."""
        self._to_target.set()
        self._to_client.set()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                _end(client)
                continue
            self._sockets += [client, target]
            for source, sink, is_open in (
                (client, target, self._to_target),
                (target, client, self._to_client),
            ):
                threading.Thread(target=self._forward, args=(source, sink, is_open), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_open: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                is_open.wait()
                if self._closed.is_set():
                    break
                sink.sendall(data)
        # The end of a connection takes the same way as its data.
        is_open.wait()
        _end(sink)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
