"""A server of large files that behaves as badly as a test says: one behaviour for each request, then well."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

_TILE = Random(1).randbytes((1 << 20) + 7) * 2
_PERIOD = len(_TILE) // 2


@dataclass(frozen=True)
class Content:
    """Bytes that are made when they are read, so that a test may have 30 GB of them."""

    size: int

    def read(self, offset: int, count: int) -> memoryview:
        """At most one period, from `offset` on."""
        begin = offset % _PERIOD
        return memoryview(_TILE)[begin : begin + min(count, _PERIOD, self.size - offset)]

    def blocks(self, offset: int = 0) -> Iterator[memoryview]:
        while offset < self.size:
            block = self.read(offset, _PERIOD)
            offset += len(block)
            yield block

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


Behaviour = Callable[["Request"], None]


@dataclass
class Request:
    """One GET of a file."""

    handler: BaseHTTPRequestHandler
    content: Content
    etag: str
    stopped: threading.Event

    @property
    def offset(self) -> int:
        """Where the client wants to go on; 0 if its If-Range names another content"""
        headers = self.handler.headers
        if headers.get("If-Range", self.etag) != self.etag or "Range" not in headers:
            return 0
        return int(headers["Range"].removeprefix("bytes=").rstrip("-"))

    def head(self, status: int, **headers: Any) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()

    def good_head(self, offset: int | None = None) -> int:
        """The head of an honest answer; the offset of its body."""
        start, size = self.offset if offset is None else offset, self.content.size
        if start:
            end = f"bytes {start}-{size - 1}/{size}"
            self.head(206, Content_Length=size - start, Content_Range=end, ETag=self.etag)
        else:
            self.head(200, Content_Length=size, ETag=self.etag)
        return start

    def body(self, start: int, count: int | None = None) -> None:
        for block in self.content.blocks(start):
            part = block if count is None else block[:count]
            self.handler.wfile.write(part)
            if count is not None and (count := count - len(part)) <= 0:
                return


def good(request: Request) -> None:
    if request.offset and request.offset >= request.content.size:
        request.head(416, Content_Range=f"bytes */{request.content.size}", Content_Length=0)
    else:
        request.body(request.good_head())


def drop_after(count: int) -> Behaviour:
    """Promises everything, and closes the connection after `count` bytes."""
    return lambda request: request.body(request.good_head(), count)


def stall_after(count: int) -> Behaviour:
    """Sends `count` bytes and then nothing."""

    def behave(request: Request) -> None:
        request.body(request.good_head(), count)
        request.handler.wfile.flush()
        request.stopped.wait(60)

    return behave


def silent(request: Request) -> None:
    """Takes the request and says nothing."""
    request.stopped.wait(60)


def trickle(request: Request) -> None:
    """Sends a byte now and then."""
    start = request.good_head()
    while not request.stopped.wait(0.05):
        request.handler.wfile.write(request.content.read(start, 1))
        start += 1


def status(code: int, **headers: Any) -> Behaviour:
    return lambda request: request.head(code, Content_Length=0, **headers)


def lie_about_size(size: int) -> Behaviour:
    """Says that the file has `size` bytes, and sends what it has."""

    def behave(request: Request) -> None:
        request.head(200, Content_Length=size, ETag=request.etag)
        request.body(0, min(size, request.content.size))

    return behave


def chunked(count: int | None = None) -> Behaviour:
    """Tells no size; ends well after `count` bytes."""

    def behave(request: Request) -> None:
        request.handler.protocol_version = "HTTP/1.1"
        request.head(200, Transfer_Encoding="chunked", ETag=request.etag)
        left = request.content.size if count is None else count
        for block in request.content.blocks():
            part = bytes(block[:left])
            request.handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            if (left := left - len(part)) <= 0:
                break
        request.handler.wfile.write(b"0\r\n\r\n")

    return behave


def ignore_ranges(request: Request) -> None:
    request.body(request.good_head(0))


def wrong_range(request: Request) -> None:
    """Sends another part than the one it was asked for, and says so."""
    request.body(request.good_head(max(1, request.offset - 1000)))


def redirect_to(url: str) -> Behaviour:
    return status(302, Location=url)


@dataclass
class HostileServer:
    """The files by path, what to do with each request for them, and the requests that came."""

    url: str
    files: dict[str, Content] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    behaviours: dict[str, list[Behaviour]] = field(default_factory=dict)
    always: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def add(self, path: str, size: int, *behaviours: Behaviour, always: Behaviour = good) -> str:
        """The URL of a new file. The first requests for it get `behaviours`, further ones `always`."""
        self.files[path] = Content(size)
        self.behaviours[path], self.always[path] = list(behaviours), always
        return f"{self.url}/{path}"

    def headers_of(self, path: str) -> list[dict[str, str]]:
        return [headers for name, headers in self.requests if name == path]


@contextmanager
def hostile_server(*, certificate: Path | None = None) -> Iterator[HostileServer]:
    """`certificate`: of a server that speaks TLS; its key is beside it."""
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 0

        def do_GET(self) -> None:
            self.close_connection = True
            path = self.path.partition("?")[0].strip("/")
            if path.startswith("http:"):  # as a proxy
                path = path.split("/", 3)[3]
                server.requests.append(("proxied", dict(self.headers)))
            server.requests.append((path, dict(self.headers)))
            if path not in server.files:
                self.send_error(404)
                return
            queue = server.behaviours[path]
            behaviour = queue.pop(0) if queue else server.always[path]
            with suppress(OSError):
                behaviour(Request(self, server.files[path], server.etags.get(path, '"one"'), stopped))

        def log_message(self, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_name("key.pem"))
        listener.socket = context.wrap_socket(
            listener.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "https" if certificate else "http"
    server = HostileServer(f"{scheme}://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stopped.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
