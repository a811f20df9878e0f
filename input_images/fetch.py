"""A picture at a URL that a stranger chose, fetched so that it cannot be used to look into this network: every address of
the host must be public, and the connection goes to the very address that was looked at."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from errors import ImageUrlFailed, ImageUrlRefused

Resolve = Callable[[str, int], list[str]]
"""(host, port) -> its addresses; raises OSError"""
IsPublic = Callable[[str], bool]

_REDIRECTS = 3
_REDIRECTED = (301, 302, 303, 307, 308)
_PATIENCE_S = 5.0
"""for a connection, and for each piece that is read"""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class _Target:
    scheme: str
    host: str
    port: int
    path: str


def fetch_image(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    param: str = "image",
    resolve: Resolve | None = None,
    is_public: IsPublic | None = None,
) -> bytes:
    """The bytes at an http(s) URL, after at most three redirects, each looked at as the first.

    `timeout_s` is for all of it. Raises ImageUrlRefused for what must not be fetched, whether or not anything is there, and
    ImageUrlFailed for what cannot.
    """
    until = time.monotonic() + timeout_s
    for _ in range(_REDIRECTS + 1):
        target = _target(url, param)
        address = _address(target, param, resolve or resolve_host, is_public or is_public_address)
        with _Visit(target, address, until, param) as visit:
            onward = visit.redirect()
            if onward is None:
                return visit.body(max_bytes)
        url = urljoin(url, onward)
    raise ImageUrlFailed("The image's URL leads on and on.", param=param)


def _target(url: str, param: str) -> _Target:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as fault:
        raise ImageUrlRefused("The image's URL is none.", param=param) from fault
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageUrlRefused("The image's URL must begin with http:// or https://.", param=param)
    if parts.username is not None or parts.password is not None:
        raise ImageUrlRefused("The image's URL may carry no user and no password.", param=param)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme, parts.hostname, port, path)


def _address(target: _Target, param: str, resolve: Resolve, is_public: IsPublic) -> str:
    """The address to connect to. Resolved once: a second answer might be another."""
    try:
        addresses = resolve(target.host, target.port)
    except (OSError, UnicodeError) as fault:
        raise ImageUrlFailed(
            f"The host {target.host!r} of the image's URL is not known.", param=param
        ) from fault
    if not addresses or not all(map(is_public, addresses)):
        raise ImageUrlRefused("The image's URL does not lead to the public internet.", param=param)
    return addresses[0]


def resolve_host(host: str, port: int) -> list[str]:
    """Every address of `host`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def is_public_address(text: str) -> bool:
    """Whether an address is of the public internet, also seen through the ways of writing IPv4 as IPv6."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


class _Visit:
    """One exchange with one address; closed at the end of its block, and cut off when the time is over."""

    def __init__(self, target: _Target, address: str, until: float, param: str) -> None:
        self._param = param
        self._is_over = threading.Event()
        remaining = max(0.1, until - time.monotonic())
        with contextlib.ExitStack() as opened:
            self._response = self._asked(target, address, remaining, opened)
            self._opened = opened.pop_all()

    def _asked(
        self, target: _Target, address: str, remaining: float, opened: contextlib.ExitStack
    ) -> http.client.HTTPResponse:
        try:
            raw = socket.create_connection((address, target.port), timeout=min(_PATIENCE_S, remaining))
            opened.callback(raw.close)
            timer = threading.Timer(remaining, self._cut_off, [raw])
            timer.daemon = True
            timer.start()
            opened.callback(timer.cancel)
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = _encrypted(raw, target.host) if target.scheme == "https" else raw
            opened.callback(connection.close)
            connection.request("GET", target.path, headers=_headers(target))
            response = connection.getresponse()
            opened.callback(response.close)
            return response
        except (OSError, ValueError, http.client.HTTPException) as fault:
            raise self._failed("did not answer as a web server does") from fault

    def __enter__(self) -> _Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def redirect(self) -> str | None:
        """Where it leads on to, if it does."""
        return self._response.headers.get("Location") if self._response.status in _REDIRECTED else None

    def body(self, max_bytes: int) -> bytes:
        if self._response.status != 200:
            raise self._failed(f"answered {self._response.status}")
        if self._response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._failed("sent it compressed, which was not asked for")
        try:
            received = self._response.read(max_bytes + 1)
        except (OSError, ValueError, http.client.HTTPException) as fault:
            raise self._failed("broke off or took too long") from fault
        if len(received) > max_bytes:
            raise self._failed(f"sent more than {max_bytes} bytes")
        # The end of a connection that we cut off looks like the end of an answer without a length.
        if self._response.length or self._is_over.is_set():
            raise self._failed("broke off or took too long")
        return received

    def _failed(self, what: str) -> ImageUrlFailed:
        return ImageUrlFailed(f"The server at the image's URL {what}.", param=self._param)

    def _cut_off(self, raw: socket.socket) -> None:
        self._is_over.set()
        with contextlib.suppress(OSError):
            # The plain socket's own method: reading from it then ends, whatever is wrapped around it.
            socket.socket.shutdown(raw, socket.SHUT_RDWR)


def _encrypted(raw: socket.socket, host: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(raw, server_hostname=host)


def _headers(target: _Target) -> dict[str, str]:
    host = f"[{target.host}]" if ":" in target.host else target.host
    default = 443 if target.scheme == "https" else 80
    named = host if target.port == default else f"{host}:{target.port}"
    return {"Host": named, "User-Agent": "easel", "Accept": "image/*", "Accept-Encoding": "identity"}
