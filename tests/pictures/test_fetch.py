"""Fetching images by URL: only from public addresses, and within the limits of size and time."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from errors import ImageUrlFailed, ImageUrlRefused, InvalidImage
from pictures import read_image
from pictures.fetch import fetch_image
from pictures.web_address import is_public_address
from tests.pictures.pictures import encoded, pattern

CERTIFICATE = Path(__file__).with_name("pictures.example.pem")
"""Certificate and key of pictures.example for these tests, valid until 2120."""
NAME = "pictures.example"
Respond = Callable[[socket.socket], None]


class WebServer:
    """Responds to each connection with the next of `responses`; repeats the last one. Counts the connections."""

    def __init__(self, responses: list[Respond], tls: ssl.SSLContext | None = None) -> None:
        self.responses, self.connection_count = responses, 0
        self.requests: list[bytes] = []
        self._tls = tls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._respond(connection)

    def _respond(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            self.requests.append(connection.recv(65536))
            self.connection_count += 1
            self.responses[min(self.connection_count, len(self.responses)) - 1](connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def sends(text: bytes) -> Respond:
    return lambda connection: connection.sendall(text)


def ok(body: bytes, head: bytes = b"") -> Respond:
    return sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body))


StartServer = Callable[..., WebServer]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    servers: list[WebServer] = []

    def start(*responses: Respond, tls: ssl.SSLContext | None = None) -> WebServer:
        servers.append(WebServer(list(responses), tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fetch(
    server: WebServer,
    path: str = "/a.png",
    *,
    scheme: str = "http",
    name: str = NAME,
    timeout_s: float = 5,
    addresses: tuple[str, ...] = ("127.0.0.1",),
    trusted: ssl.SSLContext | None = None,
) -> bytes:
    """Fetches at most 1000 bytes from `server` under a host name, with loopback treated as the public internet."""
    return fetch_image(
        f"{scheme}://{name}:{server.port}{path}",
        max_bytes=1000,
        timeout_s=timeout_s,
        resolve=lambda host, port: list(addresses),
        is_public=lambda address: True,
        tls=trusted,
    )


def test_a_picture_is_fetched_from_the_checked_address_with_its_host_name(
    start_server: StartServer,
) -> None:
    server = start_server(ok(b"picture"))
    assert fetch(server, "/a.png?x=1#y") == b"picture"
    head = server.requests[0].decode()
    assert head.startswith("GET /a.png?x=1 HTTP/1.1\r\n")
    assert f"Host: pictures.example:{server.port}\r\n" in head
    assert "Accept-Encoding: identity" in head


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png", "http://localhost:80/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/",
        "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/", "http://[fd00::1]/", "http://[fe80::1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/",
        "http://2130706433/", "http://0x7f.1/", "http://224.0.0.1/", "http://255.255.255.255/",
    ],
)  # fmt: skip
def test_a_private_address_is_refused_in_every_notation(url: str) -> None:
    with pytest.raises(ImageUrlRefused):
        fetch_image(url, max_bytes=10, timeout_s=5)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a",
        "file:///etc/passwd",
        "http://",
        "https://user:word@example.org/",
        "http://x:99999/",
        "//a",
    ],
)
def test_a_url_that_is_invalid_or_not_http_is_refused(url: str) -> None:
    with pytest.raises(ImageUrlRefused):
        fetch_image(url, max_bytes=10, timeout_s=5)


def test_a_host_with_one_private_address_among_public_ones_is_refused() -> None:
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            "http://x.example/", max_bytes=9, timeout_s=1, resolve=lambda *_: ["93.184.216.34", "10.0.0.1"]
        )


def test_a_private_host_and_an_unknown_host_are_refused_with_the_same_message() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    errors = set()
    for resolve in (unknown, lambda *_: ["10.0.0.1"], lambda *_: []):
        with pytest.raises(ImageUrlRefused) as caught:
            fetch_image("http://x.example/", max_bytes=9, timeout_s=1, param="mask", resolve=resolve)
        errors.add((caught.value.message, caught.value.param))
    assert len(errors) == 1


def test_a_private_address_is_never_connected_to(start_server: StartServer) -> None:
    server = start_server(ok(b"secret"))
    with pytest.raises(ImageUrlRefused):
        fetch_image(f"http://127.0.0.1:{server.port}/", max_bytes=9, timeout_s=5)
    assert server.connection_count == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/", "//127.0.0.1:{}/", "http://[::ffff:127.0.0.1]:{}/"])
def test_a_redirect_is_checked_like_the_first_url(start_server: StartServer, status: int, url: str) -> None:
    secret = start_server(ok(b"secret"))
    location = url.format(secret.port)
    server = start_server(sends(f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\n\r\n".encode()))
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            f"http://x.example:{server.port}/",
            max_bytes=99,
            timeout_s=5,
            resolve=lambda host, port: ["127.0.0.1" if host == "x.example" else host],
            is_public=lambda address: server.connection_count == 0 or is_public_address(address),
        )
    assert (server.connection_count, secret.connection_count) == (1, 0)


@pytest.mark.parametrize("location", ["http://[", "file:///etc/passwd", "http://a:b@x/", "http://x:port/"])
def test_a_redirect_to_an_invalid_url_is_refused(start_server: StartServer, location: str) -> None:
    server = start_server(sends(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode()))
    with pytest.raises(ImageUrlRefused):
        fetch(server)


def test_a_relative_redirect_is_followed(start_server: StartServer) -> None:
    server = start_server(sends(b"HTTP/1.1 302 Found\r\nLocation: ../b.png\r\n\r\n"), ok(b"picture"))
    assert fetch(server, "/folder/a.png") == b"picture"
    assert server.requests[1].startswith(b"GET /b.png HTTP/1.1")


def test_a_host_is_resolved_only_once(
    start_server: StartServer,
) -> None:
    server, lookups = start_server(ok(b"x")), []

    def resolve(host: str, port: int) -> list[str]:
        lookups.append(host)
        return ["127.0.0.1"]

    fetch_image(
        f"http://x.example:{server.port}/",
        max_bytes=9,
        timeout_s=5,
        resolve=resolve,
        is_public=lambda _: True,
    )
    assert lookups == ["x.example"]


def test_at_most_three_redirects_are_followed(start_server: StartServer) -> None:
    server = start_server(sends(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"))
    with pytest.raises(ImageUrlFailed, match="redirects too many times"):
        fetch(server)
    assert server.connection_count == 4


@pytest.mark.parametrize(
    "respond",
    [
        ok(b"x" * 1001),
        sends(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000),
        sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        ok(b"x", b"Content-Encoding: gzip\r\n"),
        sends(b"not HTTP at all"),
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        sends(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n"),
        sends(b""),
    ],
    ids=[
        "too long",
        "too long without a length",
        "404",
        "half",
        "gzip",
        "no HTTP",
        "bad chunks",
        "headers",
        "nothing",
    ],
)
def test_a_response_that_is_invalid_incomplete_or_too_large_is_a_failure(
    start_server: StartServer, respond: Respond
) -> None:
    with pytest.raises(ImageUrlFailed):
        fetch(start_server(respond))


@pytest.mark.parametrize("content_type", [b"text/html", b"application/octet-stream", b""])
def test_the_content_type_is_ignored(start_server: StartServer, content_type: bytes) -> None:
    data = encoded(pattern(8, 8))
    assert read_image(fetch(start_server(ok(data, b"Content-Type: %s\r\n" % content_type)))).size == (8, 8)
    page = fetch(start_server(ok(b"<html></html>", b"Content-Type: image/png\r\n")))
    with pytest.raises(InvalidImage, match="HTML"):
        read_image(page)


def test_a_url_is_escaped_as_a_browser_does(start_server: StartServer) -> None:
    server = start_server(ok(b"picture"))
    fetch(server, "/bücher/a b.png?x=%20&y=ü\r\nX-Evil: 1")
    head = server.requests[0].decode("ascii")
    assert head.startswith("GET /b%C3%BCcher/a%20b.png?x=%20&y=%C3%BCX-Evil:%201 HTTP/1.1\r\n")
    fetch(server, name="bücher.example")
    assert f"Host: xn--bcher-kva.example:{server.port}\r\n".encode() in server.requests[1]


def test_the_addresses_of_a_host_are_tried_in_turn(start_server: StartServer) -> None:
    server = start_server(ok(b"picture"))
    assert fetch(server, addresses=("::1", "127.0.0.2", "127.0.0.1")) == b"picture"
    with pytest.raises(ImageUrlFailed, match="cannot be reached"):
        fetch(server, addresses=("::1", "127.0.0.2"))


# --- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture
def trusted() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATE)


def test_a_server_with_a_trusted_certificate_is_accepted(
    start_server: StartServer, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    server = start_server(ok(b"picture"), tls=tls)
    assert fetch(server, scheme="https", trusted=trusted) == b"picture"


def test_no_request_is_sent_to_a_server_without_a_trusted_certificate_for_its_name(
    start_server: StartServer, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    server = start_server(ok(b"picture"), tls=tls)
    with pytest.raises(ImageUrlFailed, match="certificate"):
        fetch(server, scheme="https", name="other.example", trusted=trusted)
    with pytest.raises(ImageUrlFailed, match="certificate"):
        fetch(server, scheme="https")
    assert server.connection_count == 0


def test_a_server_without_tls_is_a_failure(start_server: StartServer) -> None:
    with pytest.raises(ImageUrlFailed, match="TLS"):
        fetch(start_server(ok(b"picture")), scheme="https")


# --- timeouts --------------------------------------------------------------------------------------


def sends_slowly(start: bytes) -> Respond:
    def respond(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)

    return respond


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
    ],
    ids=["body", "body without a length", "headers"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_sends_one_byte_at_a_time_is_disconnected_at_the_timeout(
    start_server: StartServer, start: bytes, scheme: str, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    server = start_server(sends_slowly(start), tls=tls if scheme == "https" else None)
    started_at = time.monotonic()
    with pytest.raises(ImageUrlFailed):
        fetch(server, scheme=scheme, trusted=trusted, timeout_s=0.4)
    assert time.monotonic() - started_at < 2


def test_a_tls_handshake_without_a_response_times_out(start_server: StartServer) -> None:
    server = start_server(lambda connection: connection.recv(1))
    started_at = time.monotonic()
    with pytest.raises(ImageUrlFailed):
        fetch(server, scheme="https", timeout_s=0.3)
    assert time.monotonic() - started_at < 2


def test_a_lookup_without_a_response_times_out() -> None:
    released = threading.Event()
    started_at = time.monotonic()
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            "http://x.example/",
            max_bytes=9,
            timeout_s=0.2,
            resolve=lambda host, port: ["93.184.216.34"] if released.wait(10) else [],
        )
    released.set()
    assert time.monotonic() - started_at < 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_server_may_use_all_of_the_time(
    start_server: StartServer, scheme: str, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    """More than the five seconds that connecting to one of several addresses may take."""

    def slow(connection: socket.socket) -> None:
        time.sleep(5.3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture")

    server = start_server(slow, tls=tls if scheme == "https" else None)
    assert fetch(server, scheme=scheme, trusted=trusted, timeout_s=20) == b"picture"


def test_a_body_that_is_announced_as_too_large_is_not_waited_for(start_server: StartServer) -> None:
    def announce(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
        connection.recv(1)  # until the client closes the connection

    started_at = time.monotonic()
    with pytest.raises(ImageUrlFailed, match="more than 1000 bytes"):
        fetch(start_server(announce), timeout_s=30)
    assert time.monotonic() - started_at < 15


def test_the_timeout_covers_all_redirects_together(start_server: StartServer) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.2)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n")

    server = start_server(slow)
    with pytest.raises(ImageUrlFailed, match=r"time|too long"):
        fetch(server, timeout_s=0.5)
    assert server.connection_count <= 3


# --- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True), ("64:ff9b::5db8:d822", True),
     ("2002:5db8:d822::1", True), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("64:ff9b:1::a00:1", False),
     ("2002:a00:1::1", False), ("::7f00:1", False), ("::ffff:0:7f00:1", False), ("2001:0:a00:1::1", False), ("fec0::1", False),
     ("2001:db8::1", False), ("3fff::1", False), ("4000::1", False), ("ff0e::1", False), ("ff02::1", False), ("::", False),
     ("198.18.0.1", False), ("192.0.0.8", False), ("192.88.99.1", False), ("240.0.0.1", False), ("239.1.1.1", False)],
)  # fmt: skip
def test_is_public_address(address: str, public: bool) -> None:
    assert is_public_address(address) is public
