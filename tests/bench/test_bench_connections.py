"""The benchmark's own HTTP and WebSocket clients."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from bench.http import Http, wire_bytes
from bench.processes import listening_pid
from bench.websocket import BINARY, TEXT, WebSocket

TIMEOUT_S = 30
_UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


@contextlib.contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that calls `serve` with one connection after another, each closed at the end."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT_S)


def frame(opcode: int, content: bytes, *, is_last: bool = True) -> bytes:
    size = len(content)
    if size < 126:
        length = bytes([size])
    elif size < 65536:
        length = b"\x7e" + struct.pack(">H", size)
    else:
        length = b"\x7f" + struct.pack(">Q", size)
    return bytes([opcode | (0x80 if is_last else 0)]) + length + content


@contextlib.contextmanager
def connected(*frames: bytes) -> Iterator[WebSocket]:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(_UPGRADE + b"".join(frames))
        while connection.recv(65536):
            pass

    with served(serve) as url, contextlib.closing(WebSocket(f"{url}/ws?clientId=a", TIMEOUT_S)) as websocket:
        yield websocket


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 3_000_000])
def test_a_message_of_any_size_is_received_whole(size: int) -> None:
    content = os.urandom(size)
    with connected(frame(BINARY, content), frame(TEXT, b"next")) as websocket:
        assert websocket.receive() == (BINARY, content)
        assert websocket.receive() == (TEXT, b"next")


def test_a_message_in_parts_is_joined_although_a_ping_comes_between() -> None:
    parts = frame(TEXT, b"one ", is_last=False), frame(9, b"ping"), frame(0, b"two")
    with connected(*parts) as websocket:
        assert websocket.receive() == (TEXT, b"one two")


def test_a_ping_is_answered() -> None:
    answers: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(_UPGRADE + frame(9, b"ping"))
        answers.append(connection.recv(65536))
        connection.sendall(frame(TEXT, b"end"))

    with served(serve) as url, contextlib.closing(WebSocket(f"{url}/ws?clientId=a", TIMEOUT_S)) as websocket:
        assert websocket.receive() == (TEXT, b"end")
    assert answers == [b"\x8a\x84\0\0\0\0ping"]


@pytest.mark.parametrize("last", [frame(8, b""), b"\x81\x05cut"])
def test_the_end_of_a_websocket_is_an_error(last: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(_UPGRADE + last)

    with (
        served(serve) as url,
        contextlib.closing(WebSocket(f"{url}/ws?clientId=a", TIMEOUT_S)) as websocket,
        pytest.raises(RuntimeError, match="The engine"),
    ):
        websocket.receive()


def respond(connection: socket.socket) -> None:
    """One response, then the connection is closed."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    with served(respond) as url, contextlib.closing(Http(url, TIMEOUT_S)) as http:
        for _ in range(3):
            assert http.call("GET", "/") == b"ok"
            assert http.socket is not None
            assert http.socket.recv(1) == b""  # the server has closed it


def test_another_status_than_200_is_an_error_with_the_response() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")

    with (
        served(refuse) as url,
        contextlib.closing(Http(url, TIMEOUT_S)) as http,
        pytest.raises(RuntimeError, match="gave 404: b'none'"),
    ):
        http.call("GET", "/prompt")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts")
def test_the_bytes_on_the_wire_are_those_sent_and_received() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
        with client, server:
            before = wire_bytes([client])
            client.sendall(bytes(1000))
            server.recv(1000, socket.MSG_WAITALL)
            server.sendall(bytes(5000))
            client.recv(5000, socket.MSG_WAITALL)
            after = wire_bytes([client])
    assert before is not None
    assert after is not None
    assert after - before == 6000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists sockets in /proc")
def test_the_process_that_listens_on_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert listening_pid(port) == os.getpid()
    assert listening_pid(port) is None
