"""Bodies that do not come, and clients that are no longer there, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Request

from api.connection import DISCARD_AT_MOST_S, discard_body, hang_up_of, read_body
from errors import BodyTimeout, InvalidRequest


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end of a connection and the client's."""
    server, client = socket.socketpair()
    with server, client, Flask("test").app_context():
        yield server, client


def environ_of(server: socket.socket, length: int = 10, **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(length),
        "wsgi.input": server.makefile("rb", buffering=0),
        "gunicorn.socket": server,
        **more,
    }


Pair = tuple[socket.socket, socket.socket]


def test_a_body_that_comes_is_read_and_the_connection_is_as_patient_as_before(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"0123456789")
    with environ_of(server)["wsgi.input"] as stream:
        assert read_body(Request(environ_of(server, **{"wsgi.input": stream}))) == b"0123456789"
    assert server.gettimeout() is None


def test_a_body_that_stalls_is_given_up(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"01234")
    with environ_of(server)["wsgi.input"] as stream, pytest.raises(BodyTimeout):
        read_body(Request(environ_of(server, **{"wsgi.input": stream})), patience_s=0.05)


def test_a_body_that_breaks_off_is_the_clients_error(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"01234")
    client.shutdown(socket.SHUT_WR)
    with environ_of(server)["wsgi.input"] as stream, pytest.raises(InvalidRequest):
        read_body(Request(environ_of(server, **{"wsgi.input": stream})))


def test_a_body_that_nobody_wants_is_not_waited_for(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"01234")
    with environ_of(server)["wsgi.input"] as stream:
        discard_body(Request(environ_of(server, **{"wsgi.input": stream})))
    assert server.recv(1) == b""  # shut: whoever drains it next finds its end at once


def test_a_body_that_trickles_is_not_waited_for_either(pair: Pair) -> None:
    server, client = pair
    done = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.05):
                client.sendall(b"x")

    trickling = threading.Thread(target=trickle)
    trickling.start()
    began = time.monotonic()
    try:
        # A reader that, as gunicorn's, goes on until it has all that was asked for.
        with server.makefile("rb") as stream:
            discard_body(Request(environ_of(server, 60_000, **{"wsgi.input": stream})))
        assert time.monotonic() - began < 2 * DISCARD_AT_MOST_S
    finally:
        done.set()
        trickling.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_that_left_is_noticed_where_that_takes_nothing_from_the_stream(
    pair: Pair, scheme: str
) -> None:
    server, client = pair
    gone = hang_up_of({"gunicorn.socket": server, "wsgi.url_scheme": scheme})
    assert not gone()
    client.sendall(b"the next request")
    assert not gone()
    assert server.recv(100) == b"the next request"
    client.close()
    assert gone() == (scheme == "http")


def test_without_a_socket_nobody_ever_leaves() -> None:
    assert not hang_up_of({})()
