"""A picture at a URL that a stranger chose, fetched so that it cannot be used to look into this network: the connection goes
to the very address that was looked at, and ends when the time is over, whatever the server does."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from types import TracebackType

from errors import ImageUrlFailed
from pictures.web_address import (
    IsPublic,
    Resolve,
    WebAddress,
    is_public_address,
    onward_url,
    public_addresses,
    read_url,
    resolve_host,
)

_REDIRECTS = 3
_REDIRECTED = (301, 302, 303, 307, 308)
_CONNECT_S = 5.0
"""for one of a host's addresses; then the next is tried"""


def fetch_image(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    param: str = "image",
    resolve: Resolve = resolve_host,
    is_public: IsPublic = is_public_address,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """The bytes at an http(s) URL, after at most three redirects, each looked at as the first. No proxy is used.

    `timeout_s` is for all of it, `tls` says whom to trust if not the system's authorities. Raises ImageUrlRefused for what
    must not be fetched, whether or not anything is there, and ImageUrlFailed for what cannot.
    """
    until = time.monotonic() + timeout_s
    for _ in range(_REDIRECTS + 1):
        address = read_url(url, param)
        hosts = public_addresses(address, param, until - time.monotonic(), resolve, is_public)
        with _Visit(address, hosts, until, param, tls) as visit:
            location = visit.redirect()
            if location is None:
                return visit.body(max_bytes)
        url = onward_url(url, location, param)
    raise ImageUrlFailed("The image's URL leads on and on.", param=param)


class _Visit:
    """One exchange with one server; closed at the end of its block, and cut off when the time is over."""

    def __init__(
        self, address: WebAddress, hosts: list[str], until: float, param: str, tls: ssl.SSLContext | None
    ) -> None:
        self._address, self._until, self._param, self._tls = address, until, param, tls
        self._is_over = threading.Event()
        with contextlib.ExitStack() as closing:
            self._response = self._asked(self._connected(hosts, closing), closing)
            self._closing = closing.pop_all()

    def __enter__(self) -> _Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def redirect(self) -> str | None:
        """Where it leads on to, if it does."""
        return self._response.headers.get("Location") if self._response.status in _REDIRECTED else None

    def body(self, max_bytes: int) -> bytes:
        """Raises ImageUrlFailed unless it is whole, as it is, and no larger."""
        if self._response.status != 200:
            raise self._failed(f"answered {self._response.status}")
        if self._response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._failed("sent it compressed, which was not asked for")
        if (self._response.length or 0) > max_bytes:
            raise self._failed(f"has more than {max_bytes} bytes to send")
        try:
            received = self._response.read(max_bytes + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failed("broke off or took too long") from error
        if len(received) > max_bytes:
            raise self._failed(f"sent more than {max_bytes} bytes")
        # The end of a connection that was cut off looks like the end of an answer without a length.
        if self._response.length or self._is_over.is_set():
            raise self._failed("broke off or took too long")
        return received

    def _connected(self, hosts: list[str], closing: contextlib.ExitStack) -> socket.socket:
        connection = self._reached(hosts)
        closing.callback(connection.close)
        if self._address.scheme == "http":
            return connection
        connection.settimeout(self._remaining())  # for the whole handshake
        context = self._tls or ssl.create_default_context()
        try:
            encrypted = context.wrap_socket(connection, server_hostname=self._address.host)
        except ssl.SSLCertVerificationError as error:
            raise self._failed("has no certificate for its name that can be trusted") from error
        except (OSError, ValueError) as error:
            raise self._failed("does not speak TLS as it should") from error
        closing.callback(encrypted.close)
        return encrypted

    def _reached(self, hosts: list[str]) -> socket.socket:
        for host in hosts:
            with contextlib.suppress(OSError):
                seconds = min(_CONNECT_S, self._remaining())
                return socket.create_connection((host, self._address.port), timeout=seconds)
        raise self._failed("cannot be reached")

    def _asked(self, connected: socket.socket, closing: contextlib.ExitStack) -> http.client.HTTPResponse:
        connected.settimeout(self._remaining())  # for each piece; the timer is for all
        timer = threading.Timer(self._remaining(), self._cut_off, [connected])
        timer.daemon = True
        closing.callback(timer.cancel)
        timer.start()
        exchange = http.client.HTTPConnection(self._address.host, self._address.port)
        exchange.sock = connected
        try:
            exchange.request("GET", self._address.path, headers=self._headers())
            response = exchange.getresponse()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failed("did not answer as a web server does, or not in time") from error
        closing.callback(response.close)
        # Once more, to come first: what the timer shuts must still be this connection.
        closing.callback(timer.cancel)
        return response

    def _headers(self) -> dict[str, str]:
        return {
            "Host": self._address.host_header,
            "User-Agent": "easel",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }

    def _remaining(self) -> float:
        remaining = self._until - time.monotonic()
        if remaining <= 0:
            raise self._failed("took too long")
        return remaining

    def _failed(self, what: str) -> ImageUrlFailed:
        return ImageUrlFailed(f"The server at the image's URL {what}.", param=self._param)

    def _cut_off(self, connected: socket.socket) -> None:
        self._is_over.set()
        with contextlib.suppress(OSError):
            # The plain socket's method, for the encrypted one's would take the cipher from the thread that reads.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)
