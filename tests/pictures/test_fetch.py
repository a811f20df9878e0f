"""Fetching by URL: only from public addresses, whatever the URL, the names and the redirects try."""

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
from pictures import fetch_image, read_image
from pictures.web_address import is_public_address
from tests.pictures.pictures import encoded, pattern

IDENTITY = Path(__file__).with_name("pictures.example.pem")
"""Certificate and key of pictures.example, good until 2120 and for nothing but these tests."""
NAME = "pictures.example"
Answer = Callable[[socket.socket], None]


class WebServer:
    """Answers each connection with what `answers` says next; counts them."""

    def __init__(self, answers: list[Answer], tls: ssl.SSLContext | None = None) -> None:
        self.answers, self.seen = answers, 0
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
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            self.requests.append(connection.recv(65536))
            self.seen += 1
            self.answers[min(self.seen, len(self.answers)) - 1](connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def says(text: bytes) -> Answer:
    return lambda connection: connection.sendall(text)


def whole(body: bytes, head: bytes = b"") -> Answer:
    return says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body))


Serving = Callable[..., WebServer]


@pytest.fixture
def serving() -> Iterator[Serving]:
    servers: list[WebServer] = []

    def serve(*answers: Answer, tls: ssl.SSLContext | None = None) -> WebServer:
        servers.append(WebServer(list(answers), tls))
        return servers[-1]

    yield serve
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
    """At most 1000 bytes, as if loopback were the public internet, under a name."""
    return fetch_image(
        f"{scheme}://{name}:{server.port}{path}",
        max_bytes=1000,
        timeout_s=timeout_s,
        resolve=lambda host, port: list(addresses),
        is_public=lambda address: True,
        tls=trusted,
    )


def test_a_picture_is_fetched_from_the_address_that_was_looked_at_under_its_own_name(
    serving: Serving,
) -> None:
    server = serving(whole(b"picture"))
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
def test_no_spelling_of_a_private_address_is_fetched(url: str) -> None:
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
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ImageUrlRefused):
        fetch_image(url, max_bytes=10, timeout_s=5)


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            "http://x.example/", max_bytes=9, timeout_s=1, resolve=lambda *_: ["93.184.216.34", "10.0.0.1"]
        )


def test_a_name_that_is_private_and_one_that_is_not_there_are_refused_in_the_same_words() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    told = []
    for resolve in (unknown, lambda *_: ["10.0.0.1"], lambda *_: []):
        with pytest.raises(ImageUrlRefused) as caught:
            fetch_image("http://x.example/", max_bytes=9, timeout_s=1, param="mask", resolve=resolve)
        told.append((caught.value.message, caught.value.param))
    assert len(set(told)) == 1


def test_a_private_address_is_never_connected_to(serving: Serving) -> None:
    server = serving(whole(b"secret"))
    with pytest.raises(ImageUrlRefused):
        fetch_image(f"http://127.0.0.1:{server.port}/", max_bytes=9, timeout_s=5)
    assert server.seen == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "inner", ["http://127.0.0.1:{}/", "//127.0.0.1:{}/", "http://[::ffff:127.0.0.1]:{}/"]
)
def test_a_redirect_is_looked_at_like_the_first(serving: Serving, status: int, inner: str) -> None:
    secret = serving(whole(b"secret"))
    location = inner.format(secret.port)
    server = serving(says(f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\n\r\n".encode()))
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            f"http://x.example:{server.port}/",
            max_bytes=99,
            timeout_s=5,
            resolve=lambda host, port: ["127.0.0.1" if host == "x.example" else host],
            is_public=lambda address: server.seen == 0 or is_public_address(address),
        )
    assert (server.seen, secret.seen) == (1, 0)


@pytest.mark.parametrize("location", ["http://[", "file:///etc/passwd", "http://a:b@x/", "http://x:port/"])
def test_a_redirect_to_what_is_no_web_address_is_refused(serving: Serving, location: str) -> None:
    server = serving(says(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode()))
    with pytest.raises(ImageUrlRefused):
        fetch(server)


def test_a_redirect_within_the_site_is_followed(serving: Serving) -> None:
    server = serving(says(b"HTTP/1.1 302 Found\r\nLocation: ../b.png\r\n\r\n"), whole(b"picture"))
    assert fetch(server, "/folder/a.png") == b"picture"
    assert server.requests[1].startswith(b"GET /b.png HTTP/1.1")


def test_a_name_is_resolved_once_so_that_a_second_answer_cannot_be_another(
    serving: Serving,
) -> None:
    server, asked = serving(whole(b"x")), []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    fetch_image(
        f"http://x.example:{server.port}/",
        max_bytes=9,
        timeout_s=5,
        resolve=resolve,
        is_public=lambda _: True,
    )
    assert asked == ["x.example"]


def test_a_chain_of_redirects_ends(serving: Serving) -> None:
    server = serving(says(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"))
    with pytest.raises(ImageUrlFailed, match="on and on"):
        fetch(server)
    assert server.seen == 4


@pytest.mark.parametrize(
    "answer",
    [
        whole(b"x" * 1001),
        says(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000),
        says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        whole(b"x", b"Content-Encoding: gzip\r\n"),
        says(b"not HTTP at all"),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n"),
        says(b""),
    ],
    ids=["too long", "endless", "404", "half", "gzip", "no HTTP", "bad chunks", "headers", "nothing"],
)
def test_an_answer_that_is_not_a_whole_picture_within_the_limit_is_a_failure(
    serving: Serving, answer: Answer
) -> None:
    with pytest.raises(ImageUrlFailed):
        fetch(serving(answer))


@pytest.mark.parametrize("kind", [b"text/html", b"application/octet-stream", b""])
def test_the_announced_type_does_not_count(serving: Serving, kind: bytes) -> None:
    data = encoded(pattern(8, 8))
    assert read_image(fetch(serving(whole(data, b"Content-Type: %s\r\n" % kind)))).size == (8, 8)
    page = fetch(serving(whole(b"<html></html>", b"Content-Type: image/png\r\n")))
    with pytest.raises(InvalidImage, match="HTML"):
        read_image(page)


def test_a_url_is_escaped_as_a_browser_does(serving: Serving) -> None:
    server = serving(whole(b"picture"))
    fetch(server, "/bücher/a b.png?x=%20&y=ü\r\nX-Evil: 1")
    head = server.requests[0].decode("ascii")
    assert head.startswith("GET /b%C3%BCcher/a%20b.png?x=%20&y=%C3%BCX-Evil:%201 HTTP/1.1\r\n")
    fetch(server, name="bücher.example")
    assert f"Host: xn--bcher-kva.example:{server.port}\r\n".encode() in server.requests[1]


def test_of_several_addresses_one_that_answers_is_enough(serving: Serving) -> None:
    server = serving(whole(b"picture"))
    assert fetch(server, addresses=("::1", "127.0.0.2", "127.0.0.1")) == b"picture"
    with pytest.raises(ImageUrlFailed, match="cannot be reached"):
        fetch(server, addresses=("::1", "127.0.0.2"))


# --- encrypted -------------------------------------------------------------------------------------


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(IDENTITY)
    return context


@pytest.fixture
def trusted() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=IDENTITY)


def test_a_server_that_proves_its_name_is_believed(
    serving: Serving, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    server = serving(whole(b"picture"), tls=tls)
    assert fetch(server, scheme="https", trusted=trusted) == b"picture"


def test_a_server_that_cannot_prove_its_name_gets_no_request(
    serving: Serving, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    server = serving(whole(b"picture"), tls=tls)
    with pytest.raises(ImageUrlFailed, match="certificate"):
        fetch(server, scheme="https", name="other.example", trusted=trusted)
    with pytest.raises(ImageUrlFailed, match="certificate"):
        fetch(server, scheme="https")
    assert server.seen == 0


def test_a_server_without_tls_is_a_failure(serving: Serving) -> None:
    with pytest.raises(ImageUrlFailed, match="TLS"):
        fetch(serving(whole(b"picture")), scheme="https")


# --- time ------------------------------------------------------------------------------------------


def drips(start: bytes) -> Answer:
    def drip(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)

    return drip


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
def test_a_server_that_drips_is_cut_off_when_the_time_is_over(
    serving: Serving, start: bytes, scheme: str, tls: ssl.SSLContext, trusted: ssl.SSLContext
) -> None:
    server = serving(drips(start), tls=tls if scheme == "https" else None)
    began = time.monotonic()
    with pytest.raises(ImageUrlFailed):
        fetch(server, scheme=scheme, trusted=trusted, timeout_s=0.4)
    assert time.monotonic() - began < 2


def test_a_server_that_says_nothing_to_a_handshake_is_left_in_time(serving: Serving) -> None:
    server = serving(lambda connection: connection.recv(1))
    began = time.monotonic()
    with pytest.raises(ImageUrlFailed):
        fetch(server, scheme="https", timeout_s=0.3)
    assert time.monotonic() - began < 2


def test_a_name_server_that_hangs_is_left_in_time() -> None:
    over = threading.Event()
    began = time.monotonic()
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            "http://x.example/",
            max_bytes=9,
            timeout_s=0.2,
            resolve=lambda host, port: ["93.184.216.34"] if over.wait(10) else [],
        )
    over.set()
    assert time.monotonic() - began < 2


def test_the_time_of_all_redirects_together_is_limited(serving: Serving) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.2)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n")

    server = serving(slow)
    with pytest.raises(ImageUrlFailed, match=r"time|too long"):
        fetch(server, timeout_s=0.5)
    assert server.seen <= 3


# --- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True), ("64:ff9b::5db8:d822", True),
     ("2002:5db8:d822::1", True), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("64:ff9b:1::a00:1", False),
     ("2002:a00:1::1", False), ("::7f00:1", False), ("::ffff:0:7f00:1", False), ("2001:0:a00:1::1", False), ("fec0::1", False),
     ("2001:db8::1", False), ("3fff::1", False), ("4000::1", False), ("ff0e::1", False), ("ff02::1", False), ("::", False),
     ("198.18.0.1", False), ("192.0.0.8", False), ("192.88.99.1", False), ("240.0.0.1", False), ("239.1.1.1", False)],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public_address(address) is public
