"""Fetching by URL: only from public addresses, whatever the URL, the names and the redirects try."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from errors import ImageUrlFailed, ImageUrlRefused
from input_images.fetch import fetch_image, is_public_address

Serve = Callable[[bytes], None]


class WebServer:
    """Answers each connection with what `answers` says next; counts them."""

    def __init__(self, answers: list[Callable[[socket.socket], None]]) -> None:
        self.answers, self.seen = answers, 0
        self.requests: list[bytes] = []
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
            with connection:
                self.requests.append(connection.recv(65536))
                self.seen += 1
                with contextlib.suppress(OSError):
                    self.answers[min(self.seen, len(self.answers)) - 1](connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def says(text: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(text)


def whole(body: bytes, head: bytes = b"") -> Callable[[socket.socket], None]:
    return says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body))


@pytest.fixture
def serving() -> Iterator[Callable[..., WebServer]]:
    servers: list[WebServer] = []

    def serve(*answers: Callable[[socket.socket], None]) -> WebServer:
        servers.append(WebServer(list(answers)))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def fetch(server: WebServer, path: str = "/a.png", timeout_s: float = 5, max_bytes: int = 1000) -> bytes:
    """As if loopback were the public internet, under a name."""
    return fetch_image(
        f"http://pictures.example:{server.port}{path}",
        max_bytes=max_bytes,
        timeout_s=timeout_s,
        resolve=lambda host, port: ["127.0.0.1"],
        is_public=lambda address: True,
    )


def test_a_picture_is_fetched_from_the_address_that_was_looked_at_under_its_own_name(
    serving: Callable[..., WebServer],
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


def test_a_redirect_is_looked_at_like_the_first(serving: Callable[..., WebServer]) -> None:
    inner = serving(whole(b"secret"))
    server = serving(says(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{inner.port}/\r\n\r\n".encode()))
    with pytest.raises(ImageUrlRefused):
        fetch_image(
            f"http://x.example:{server.port}/",
            max_bytes=99,
            timeout_s=5,
            resolve=lambda host, port: ["127.0.0.1" if host == "x.example" else host],
            is_public=lambda address: server.seen == 0,
        )
    assert inner.seen == 0


def test_a_name_is_resolved_once_so_that_a_second_answer_cannot_be_another(
    serving: Callable[..., WebServer],
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


def test_a_chain_of_redirects_ends(serving: Callable[..., WebServer]) -> None:
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
    serving: Callable[..., WebServer], answer: Callable[[socket.socket], None]
) -> None:
    with pytest.raises(ImageUrlFailed):
        fetch(serving(answer))


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "]
)
def test_a_server_that_drips_is_cut_off_when_the_time_is_over(
    serving: Callable[..., WebServer], start: bytes
) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    with pytest.raises(ImageUrlFailed):
        fetch(serving(drip), timeout_s=0.5)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True), ("::ffff:10.0.0.1", False),
     ("2001:db8::1", False), ("198.18.0.1", False), ("ff02::1", False)],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public_address(address) is public
