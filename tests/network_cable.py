"""A cable between a client and a server that can be cut and mended, and counts the requests in it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class NetworkCable:
    """Passes connections to `target`, an http:// URL, for use in a `with` block. `requests`: the heads of HTTP requests so
    far."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close would not
        self._acceptor.join()
        self._listener.close()
        self._end_connections()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """End all connections, and each new one at once."""
        self._is_cut = True
        self._end_connections()

    def mend(self) -> None:
        """Pass connections again."""
        self._is_cut = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        if self._is_cut:
            client.close()
            return
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._open |= {client, server}
        closing = _CloseAtTheEnd(client, server)
        for source, sink in ((client, server), (server, client)):
            thread = threading.Thread(target=self._pass, args=(source, sink, closing), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket, closing: _CloseAtTheEnd) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source is closing.client:
                    self.requests += data.count(b" HTTP/1.1\r\n")
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
            closing.end_one()

    def _end_connections(self) -> None:
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


class _CloseAtTheEnd:
    """Ends both directions when one has ended, and closes the sockets when no thread uses them."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self._server = client, server
        self._users = 2

    def end_one(self) -> None:
        self._users -= 1
        for each in (self.client, self._server):
            if self._users:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            else:
                each.close()
