"""The reader of streamed lines that measurements and stream tests use."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import requests

from bench.lines import lines_of


@contextlib.contextmanager
def served(*chunks: bytes, go_on: threading.Event) -> Iterator[requests.Response]:
    """A response whose chunks are sent one by one, the second and later ones only once `go_on` is set."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for index, chunk in enumerate(chunks):
                if index:
                    assert go_on.wait(90)
                connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            connection.sendall(b"0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        with requests.get(
            f"http://127.0.0.1:{listening.getsockname()[1]}", stream=True, timeout=10
        ) as response:
            yield response
        thread.join(90)


def test_a_line_is_returned_before_the_next_one_is_sent() -> None:
    go_on = threading.Event()
    with served(b"first\nsec", b"ond\n\nlast", go_on=go_on) as response:
        lines = lines_of(response.raw)
        assert next(lines) == b"first"
        go_on.set()
        assert list(lines) == [b"second", b"", b"last"]


def test_a_line_of_forty_megabytes_takes_linear_time() -> None:
    go_on = threading.Event()
    go_on.set()
    chunk = b"x" * 1_000_000
    started_at = time.monotonic()
    with served(*[chunk] * 40, b"\n", go_on=go_on) as response:
        (line,) = lines_of(response.raw)
    assert len(line) == 40_000_000
    assert time.monotonic() - started_at < 20  # a quadratic reader needs hours
