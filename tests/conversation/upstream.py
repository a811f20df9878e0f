"""A small upstream for the tests: an HTTP server that records what it gets and answers as a test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ("tiny", "other")


@dataclass
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """For an answer: the request, and ways to send a response."""

    def __init__(self, handler: BaseHTTPRequestHandler, received: Received, stopped: threading.Event) -> None:
        self._handler, self.received, self.stopped = handler, received, stopped

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **headers})
        self.raw(body)

    def send_json(self, document: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(document).encode(), **headers)

    def begin(self, kind: str = "text/event-stream", **headers: str) -> None:
        """A response in chunks; `chunk` sends them, `end` ends it."""
        self._head(200, {"Content-Type": kind, "Transfer-Encoding": "chunked", **headers})

    def chunk(self, data: bytes) -> None:
        self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        self.raw(b"0\r\n\r\n")

    def raw(self, data: bytes) -> None:
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def cut(self) -> None:
        """Close the connection."""
        self._handler.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()


Answer = Callable[[Exchange], None]


def echo(exchange: Exchange) -> None:
    """A chat completion that says what was asked."""
    exchange.send_json({"object": "chat.completion", "choices": [{"message": {"content": "hello"}}]})


def list_models(exchange: Exchange) -> None:
    exchange.send_json({"object": "list", "data": [{"id": id, "object": "model"} for id in MODELS]})


@dataclass
class Upstream:
    """`answer` is called for every POST, `listing` for every GET."""

    answer: Answer = echo
    listing: Answer = list_models
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def posts(self) -> list[Received]:
        return [received for received in self.requests if received.method == "POST"]


@contextmanager
def upstream(answer: Answer = echo, listing: Answer = list_models) -> Iterator[Upstream]:
    """An upstream that runs inside the block."""
    fake = Upstream(answer, listing)
    sockets: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            fake.connections += 1
            sockets.append(self.request)
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(fake.answer, body)

        def do_GET(self) -> None:
            self._answer(fake.listing, b"")

        def _answer(self, answer: Answer, body: bytes) -> None:
            received = Received(self.command, self.path, dict(self.headers), body)
            fake.requests.append(received)
            try:
                answer(Exchange(self, received, fake.stopped))
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        request_queue_size = 256

    server = Listener(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in sockets:  # kept ones would answer on
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
