"""Body timeouts and detection of disconnected clients, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest
from flask import Flask, Request

from api.connection import DISCARD_TOTAL_TIMEOUT_S, discard_body, disconnect_check, read_body
from errors import BodyTimeout, InvalidRequest


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end of a connection and the client's."""
    server, client = socket.socketpair()
    with server, client, Flask("test").app_context():
        yield server, client
        # Closed here and not when they are collected, as a socket in a cycle with one would warn then.
        while _streams:
            _streams.pop().close()


_streams: list[IO[bytes]] = []


def environ_of(server: socket.socket, length: int = 10, **more: Any) -> dict[str, Any]:
    if "wsgi.input" not in more:
        _streams.append(server.makefile("rb", buffering=0))
        more["wsgi.input"] = _streams[-1]
    return {
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(length),
        "gunicorn.socket": server,
        **more,
    }


Pair = tuple[socket.socket, socket.socket]


def test_a_complete_body_is_read_and_the_socket_timeout_is_restored(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"0123456789")
    with environ_of(server)["wsgi.input"] as stream:
        assert read_body(Request(environ_of(server, **{"wsgi.input": stream}))) == b"0123456789"
    assert server.gettimeout() is None


def test_a_stalled_body_is_a_body_timeout(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"01234")
    with environ_of(server)["wsgi.input"] as stream, pytest.raises(BodyTimeout):
        read_body(Request(environ_of(server, **{"wsgi.input": stream})), idle_timeout_s=0.05)


def test_an_incomplete_body_is_an_invalid_request(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"01234")
    client.shutdown(socket.SHUT_WR)
    with environ_of(server)["wsgi.input"] as stream, pytest.raises(InvalidRequest):
        read_body(Request(environ_of(server, **{"wsgi.input": stream})))


def test_discard_body_does_not_wait_for_the_rest(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"01234")
    with environ_of(server)["wsgi.input"] as stream:
        discard_body(Request(environ_of(server, **{"wsgi.input": stream})))
    assert server.recv(1) == b""  # shut down: later reads end at once


def test_discard_body_does_not_wait_for_a_body_that_arrives_in_single_bytes(pair: Pair) -> None:
    server, client = pair
    done = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.05):
                client.sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    started_at = time.monotonic()
    try:
        # Like gunicorn's, this reader continues until it has all requested bytes.
        with server.makefile("rb") as stream:
            discard_body(Request(environ_of(server, 60_000, **{"wsgi.input": stream})))
        assert time.monotonic() - started_at < 2 * DISCARD_TOTAL_TIMEOUT_S
    finally:
        done.set()
        sender.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_disconnected_client_is_detected_without_consuming_data_and_never_over_tls(
    pair: Pair, scheme: str
) -> None:
    server, client = pair
    has_disconnected = disconnect_check({"gunicorn.socket": server, "wsgi.url_scheme": scheme})
    assert not has_disconnected()
    client.sendall(b"the next request")
    assert not has_disconnected()
    assert server.recv(100) == b"the next request"
    client.close()
    assert has_disconnected() == (scheme == "http")


def test_without_a_socket_the_client_counts_as_connected() -> None:
    assert not disconnect_check({})()
