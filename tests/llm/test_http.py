"""Incomplete, slow and malformed responses, from a server that writes raw bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from deadline import remaining_s, time_limit
from errors import StackUnreachable
from gpu_tenant import Resident
from llm import read_stacks
from llm.http import LlmHttp
from llm.parallel import parallel_map
from llm.server import NoResponse
from tests.llm.fake_servers import FakeOllama
from tests.llm.stack_helpers import ids, stacks_of
from tests.processes import free_port

Write = Callable[[socket.socket, threading.Event], None]


@contextmanager
def answering(write: Write) -> Iterator[str]:
    """The URL of a server that reads one request after another and calls `write` for each response."""
    stopping = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if stopping.is_set():
                    return
                connection.recv(65536)
                with suppress(OSError):  # the client disconnected
                    write(connection, stopping)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopping.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()


def http_to(url: str) -> LlmHttp:
    return LlmHttp("mine", url, key="sk-secret", key_header="", connect_timeout_s=2)


def test_a_chunked_response_is_read_completely() -> None:
    def write(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in (b'{"models"', b": []}"):
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        connection.sendall(b"0\r\n\r\n")

    with answering(write) as url:
        assert http_to(url).send("GET", "/", timeout_s=5).json() == {"models": []}


def test_a_response_that_arrives_too_slowly_times_out() -> None:
    def write(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not stopping.wait(0.02):
            connection.sendall(b" ")

    with answering(write) as url:
        start = time.monotonic()
        with pytest.raises(NoResponse, match="timed out"):
            http_to(url).send("GET", "/", timeout_s=0.3)
        assert time.monotonic() - start < 2


def test_a_call_ends_with_the_time_limit_of_its_thread() -> None:
    with answering(lambda connection, stopping: stopping.wait()) as url, time_limit(0.3):
        start = time.monotonic()
        with pytest.raises(NoResponse, match="timed out"):
            http_to(url).send("GET", "/", timeout_s=30)
        assert time.monotonic() - start < 2
        with pytest.raises(StackUnreachable):
            http_to(url).send("GET", "/", timeout_s=30)
        assert time.monotonic() - start < 4


def test_calls_in_parallel_keep_to_the_time_limit_too() -> None:
    with time_limit(5):
        remaining = parallel_map(lambda _: remaining_s(), [1, 2, 3])
    assert max(remaining) <= 5


def test_an_endless_response_is_aborted() -> None:
    def write(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stopping.is_set():
            connection.sendall(b"x" * 65536)

    with answering(write) as url, pytest.raises(NoResponse, match="longer than"):
        http_to(url).send("GET", "/", timeout_s=30)


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"what is this\r\n\r\n"]
)
def test_a_lost_connection_raises_no_response(start: bytes) -> None:
    with (
        answering(lambda connection, _: connection.sendall(start)) as url,
        pytest.raises(NoResponse) as error_info,
    ):
        http_to(url).send("GET", "/", timeout_s=5)
    assert "sk-secret" not in error_info.value.message + repr(error_info.value.__cause__)


def test_a_redirect_is_not_followed() -> None:
    response = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with answering(lambda connection, _: connection.sendall(response)) as url:
        assert http_to(url).send("GET", "/", timeout_s=5).status == 302


def test_a_proxy_from_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with FakeOllama() as server:
        assert ids(stacks_of(server).resident()) == set(server.MODELS)


def test_the_key_is_not_in_the_repr() -> None:
    assert "sk-secret" not in repr(http_to("http://127.0.0.1:1"))


def test_an_unload_call_that_does_not_reach_the_server_raises() -> None:
    stacks = read_stacks([{"driver": "ollama", "url": f"http://0.0.0.0:{free_port()}"}], {})
    with pytest.raises(StackUnreachable, match="refused"):
        stacks.release([Resident("ollama", "chat")])
