"""Fetches an image from a URL that an untrusted client sent, without giving the client access to this network.

The host is resolved once and its addresses are checked; urllib3 then does HTTP and TLS with exactly these addresses.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from errors import ImageUrlFailed
from pictures.web_address import (
    IsPublic,
    Resolve,
    WebAddress,
    is_public_address,
    public_addresses,
    read_url,
    redirect_url,
    resolve_host,
)
from system_errors import shortage_in

_MAX_REDIRECTS = 3
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_CONNECT_TIMEOUT_S = 5.0
"""For an address of the host, if there are others to try after it."""
_FAILURES = (HTTPError, HTTPException, OSError, ValueError)


def _raise_shortage(error: Exception) -> None:
    """Raise the error of this server, if it had too few resources to fetch the picture."""
    if shortage := shortage_in(error):
        raise shortage from error


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
    """The bytes at an http(s) URL. Follows at most three redirects, each checked like the first URL. Uses no proxy.

    `timeout_s` covers everything, redirects included. `tls` replaces the system's certificate authorities. Raises
    ImageUrlRefused for an address that must not be fetched, whether or not anything is there, and ImageUrlFailed if
    fetching fails.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(_MAX_REDIRECTS + 1):
        address = read_url(url, param)
        ips = public_addresses(address, param, deadline - time.monotonic(), resolve, is_public)
        exchange = _Exchange(address, deadline, param, tls)
        with exchange.response(ips) as response:
            location = response.headers.get("Location")
            if response.status not in _REDIRECT_STATUSES or location is None:
                return exchange.body(response, max_bytes)
        url = redirect_url(url, location, param)
    raise ImageUrlFailed("The image URL redirects too many times.", param=param)


class _Exchange:
    """One request to one server and its response. The connection is shut down at the deadline."""

    def __init__(self, address: WebAddress, deadline: float, param: str, tls: ssl.SSLContext | None) -> None:
        self._address, self._deadline, self._param, self._tls = address, deadline, param, tls
        self._expired = threading.Event()

    @contextlib.contextmanager
    def response(self, ips: list[str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """The response to a GET of the address, its body not read yet. Raises ImageUrlFailed."""
        with contextlib.closing(self._connect(ips)) as connection:
            # A socket timeout applies to each read, so a server that sends one byte at a time would never exceed it.
            timer = threading.Timer(self._remaining(), self._shut_down, [connection.sock])
            timer.daemon = True
            timer.start()
            try:
                with contextlib.closing(self._request(connection)) as response:
                    yield response
            finally:
                timer.cancel()

    def body(self, response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
        """The whole body of a 200 response. Raises ImageUrlFailed, also if it is larger than `max_bytes`."""
        if response.status != 200:
            raise self._failed(f"answered {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._failed("sent a compressed body, which was not requested")
        if (getattr(response, "length_remaining", None) or 0) > max_bytes:
            raise self._failed(f"has more than {max_bytes} bytes to send")
        try:
            body = response.read(max_bytes + 1)
        except _FAILURES as error:
            _raise_shortage(error)
            raise self._failed("closed the connection early or took too long") from error
        if len(body) > max_bytes:
            raise self._failed(f"sent more than {max_bytes} bytes")
        # If a body ends early, urllib3 returns what it has. A body without a length also ends at `_shut_down`.
        if getattr(response, "length_remaining", None) or self._expired.is_set():
            raise self._failed("closed the connection early or took too long")
        return body

    def _connect(self, ips: list[str]) -> HTTPConnection:
        for number, ip in enumerate(ips, 1):
            # The last address may use all of the remaining time, for the TLS handshake too.
            timeout_s = (
                self._remaining() if number == len(ips) else min(_CONNECT_TIMEOUT_S, self._remaining())
            )
            connection = self._connection(ip, timeout_s)
            with contextlib.ExitStack() as unless_connected:
                unless_connected.callback(connection.close)
                try:
                    connection.connect()
                except ssl.SSLCertVerificationError as error:
                    raise self._failed("has no trusted certificate for its name") from error
                except ssl.SSLError as error:
                    raise self._failed("does not speak TLS correctly") from error
                except (HTTPError, OSError) as error:
                    _raise_shortage(error)
                    continue
                unless_connected.pop_all()
                return connection
        raise self._failed("cannot be reached")

    def _connection(self, ip: str, timeout_s: float) -> HTTPConnection:
        if self._address.scheme == "http":
            return HTTPConnection(ip, self._address.port, timeout=timeout_s)
        return HTTPSConnection(
            ip,
            self._address.port,
            timeout=timeout_s,
            server_hostname=self._address.host,
            ssl_context=self._tls or ssl.create_default_context(),
        )

    def _request(self, connection: HTTPConnection) -> urllib3.BaseHTTPResponse:
        headers = {
            "Host": self._address.host_header,
            "User-Agent": "easel",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        # urllib3 sets this timeout on the socket before it reads the response.
        connection.timeout = self._remaining()
        try:
            connection.request(
                "GET", self._address.path, headers=headers, preload_content=False, decode_content=False
            )
            return connection.getresponse()
        except _FAILURES as error:
            _raise_shortage(error)
            raise self._failed("did not send a valid HTTP response in time") from error

    def _shut_down(self, connected: socket.socket) -> None:
        self._expired.set()
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which removes the TLS state while another thread reads.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self._failed("took too long")
        return remaining

    def _failed(self, what: str) -> ImageUrlFailed:
        return ImageUrlFailed(f"The server at the image URL {what}.", param=self._param)
