"""A server that treats each connection as a test says, down to the single byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Serve = Callable[[socket.socket, threading.Event], None]


@contextmanager
def raw_server(serve: Serve) -> Iterator[int]:
    """The port of a server that treats each connection with `serve` until the event is set."""
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection, stopped)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=run, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)


def silent(connection: socket.socket, stopped: threading.Event) -> None:
    """Says nothing."""
    stopped.wait()


def dripping(start: bytes) -> Serve:
    """Sends `start` and then one byte at a time, without an end."""

    def serve(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(start)
        while not stopped.wait(0.02):
            connection.sendall(b"x")

    return serve


SLOW_ANSWERS = {
    "silent": silent,
    "status": dripping(b"HTTP/1.1 200 "),
    "headers": dripping(b"HTTP/1.1 200 OK\r\nX-Filler: "),
    "body": dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
    "chunk": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n"),
}
