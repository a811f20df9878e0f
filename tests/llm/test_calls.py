"""Replies that come in odd ways, from a server that writes raw bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from errors import StackUnreachable
from gpu_tenant import Resident
from llm import read_stacks
from llm.calls import Calls, NoReply
from tests.llm.fake_servers import FakeOllama
from tests.llm.worlds import free_port, ids, stacks_of

Write = Callable[[socket.socket, threading.Event], None]


@contextmanager
def answering(write: Write) -> Iterator[str]:
    """A server that reads one request after another and lets `write` answer; its address."""
    end = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if end.is_set():
                    return
                connection.recv(65536)
                with suppress(OSError):  # the caller hung up
                    write(connection, end)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        end.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()


def calls(url: str) -> Calls:
    return Calls("mine", url, key="sk-secret", key_header="", connect_s=2)


def test_a_reply_in_chunks_is_read_whole() -> None:
    def write(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b'{"models"', b": []}"):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")

    with answering(write) as url:
        assert calls(url).send("GET", "/", timeout_s=5).json() == {"models": []}


def test_a_reply_that_drips_ends_in_time() -> None:
    def write(connection: socket.socket, end: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not end.wait(0.02):
            connection.sendall(b" ")

    with answering(write) as url:
        start = time.monotonic()
        with pytest.raises(NoReply, match="too long"):
            calls(url).send("GET", "/", timeout_s=0.3)
        assert time.monotonic() - start < 2


def test_a_reply_without_end_is_given_up() -> None:
    def write(connection: socket.socket, end: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not end.is_set():
            connection.sendall(b"x" * 65536)

    with answering(write) as url, pytest.raises(NoReply, match="longer than"):
        calls(url).send("GET", "/", timeout_s=30)


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"what is this\r\n\r\n"]
)
def test_a_connection_that_breaks_off_is_no_reply(start: bytes) -> None:
    with answering(lambda connection, _: connection.sendall(start)) as url, pytest.raises(NoReply) as told:
        calls(url).send("GET", "/", timeout_s=5)
    assert "sk-secret" not in told.value.message + repr(told.value.__cause__)


def test_a_redirect_is_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with answering(lambda connection, _: connection.sendall(answer)) as url:
        assert calls(url).send("GET", "/", timeout_s=5).status == 302


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with FakeOllama() as server:
        assert ids(stacks_of(server).resident()) == set(server.MODELS)


def test_the_key_is_in_no_repr() -> None:
    assert "sk-secret" not in repr(calls("http://127.0.0.1:1"))


def test_nothing_can_come_of_an_unload_that_reaches_nobody() -> None:
    stacks = read_stacks([{"driver": "ollama", "url": f"http://0.0.0.0:{free_port()}"}], {})
    with pytest.raises(StackUnreachable, match="refused"):
        stacks.release([Resident("ollama", "chat")])
