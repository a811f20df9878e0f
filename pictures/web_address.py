"""Where a URL that a stranger chose leads, and whether anything may be fetched there: every address of its host must be of
the public internet. Looks names up, and connects to nothing."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from errors import ImageUrlRefused

Resolve = Callable[[str, int], list[str]]
"""(host, port) -> its addresses; raises OSError"""
IsPublic = Callable[[str], bool]

_UNICAST = ipaddress.ip_network("2000::/3")
"""Of all IPv6 addresses, the public ones lie in here."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
"""What Python 3.11 takes for public and IANA for special"""
_KEPT = "!#$%&'()*+,/:;=?@[]~"
"""What stays as it is in a path and a query; everything else outside of ASCII's letters and digits is escaped."""


@dataclass(frozen=True)
class WebAddress:
    """What a URL says; `host` in ASCII, `path` with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


def read_url(url: str, param: str) -> WebAddress:
    """Raises ImageUrlRefused for anything but http and https, and for a user or a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise ImageUrlRefused("The image's URL is none.", param=param) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ImageUrlRefused("The image's URL must begin with http:// or https://.", param=param)
    if parts.username is not None or parts.password is not None:
        raise ImageUrlRefused("The image's URL may carry no user and no password.", param=param)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    escaped = quote(path, safe=_KEPT, errors="replace")
    return WebAddress(parts.scheme, host, _default_port(parts.scheme) if port is None else port, escaped)


def onward_url(url: str, location: str, param: str) -> str:
    """The URL that a redirect from `url` leads to. Raises ImageUrlRefused."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ImageUrlRefused("The image's URL leads on to what is no URL.", param=param) from error


def public_addresses(
    address: WebAddress, param: str, seconds: float, resolve: Resolve, is_public: IsPublic
) -> list[str]:
    """The addresses of the host, looked up once: a second answer might be another.

    Raises ImageUrlRefused, in the same words for a host that is private and one that is not there: which names are known
    in this network is nobody's business.
    """
    found = _resolved(address, seconds, resolve)
    if not found or not all(map(is_public, found)):
        raise ImageUrlRefused(
            f"The host {address.host!r} of the image's URL has no address on the public internet.",
            param=param,
        )
    return found


def resolve_host(host: str, port: int) -> list[str]:
    """Every address of `host`, the best first."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def is_public_address(text: str) -> bool:
    """Whether an address is of the public internet, also seen through the ways of writing IPv4 as IPv6."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := _ipv4_inside(address)) is not None:
            address = inner
        elif address not in _UNICAST:
            return False
    special = any(address in network for network in _SPECIAL if network.version == address.version)
    return address.is_global and not address.is_multicast and not special


def _ipv4_inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _resolved(address: WebAddress, seconds: float, resolve: Resolve) -> list[str]:
    """Empty if there is none, or none in time. The system's resolver cannot be interrupted: its thread is left behind."""
    answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(address.host, address.port))
        except (OSError, UnicodeError):
            answers.put([])

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        return answers.get(timeout=max(0.0, seconds))
    except queue.Empty:
        return []


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
