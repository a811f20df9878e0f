"""Parses image URLs from untrusted clients and checks that all addresses of their host are on the public internet.
Looks up host names; connects to nothing.

`ipaddress.is_global` alone is not enough: in Python 3.11 it takes some special-purpose ranges for public.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from errors import EaselError, ImageUrlRefused
from system_errors import shortage_in

Resolve = Callable[[str, int], list[str]]
"""(host, port) -> addresses of the host; raises OSError"""
IsPublic = Callable[[str], bool]

_UNICAST = ipaddress.ip_network("2000::/3")
"""contains all public IPv6 addresses"""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
"""public according to Python 3.11, special-purpose according to IANA"""
_UNESCAPED = "!#$%&'()*+,/:;=?@[]~"
"""Besides ASCII letters and digits, these characters are not escaped in a path and a query."""


@dataclass(frozen=True)
class WebAddress:
    """The parts of a URL. `host` is in ASCII; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


def read_url(url: str, param: str) -> WebAddress:
    """Parse `url`. Raises ImageUrlRefused unless it is http or https without a user name and password."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise ImageUrlRefused("The image URL is not valid.", param=param) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ImageUrlRefused("The image URL must begin with http:// or https://.", param=param)
    if parts.username is not None or parts.password is not None:
        raise ImageUrlRefused("The image URL must not contain a user name or a password.", param=param)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    escaped = quote(path, safe=_UNESCAPED, errors="replace")
    return WebAddress(parts.scheme, host, _default_port(parts.scheme) if port is None else port, escaped)


def redirect_url(url: str, location: str, param: str) -> str:
    """The URL that a redirect from `url` leads to. Raises ImageUrlRefused."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ImageUrlRefused(
            "The image URL redirects to something that is not a URL.", param=param
        ) from error


def public_addresses(
    address: WebAddress, param: str, timeout_s: float, resolve: Resolve, is_public: IsPublic
) -> list[str]:
    """The addresses of the host. Connect to these and do not look it up again: a second lookup may have another result.

    Raises ImageUrlRefused. The message is the same whether the host is private or does not exist, so that clients
    cannot find out which names exist in this network.
    """
    addresses = _resolve_within(timeout_s, address, resolve)
    if not addresses or not all(map(is_public, addresses)):
        raise ImageUrlRefused(
            f"The host {address.host!r} of the image URL has no address on the public internet.",
            param=param,
        )
    return addresses


def resolve_host(host: str, port: int) -> list[str]:
    """Every address of `host`, in the system's order of preference. Raises OSError."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        # If no file may be opened, the resolver says that there is no such host.
        with open("/dev/null", "rb"):
            raise
    return [str(entry[4][0]).partition("%")[0] for entry in entries]


def is_public_address(text: str) -> bool:
    """Whether an address is on the public internet. An IPv4 address embedded in an IPv6 address is checked as IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if (embedded := _embedded_ipv4(address)) is not None:
            address = embedded
        elif address not in _UNICAST:
            return False
    special = any(address in network for network in _SPECIAL if network.version == address.version)
    return address.is_global and not address.is_multicast and not special


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _resolve_within(timeout_s: float, address: WebAddress, resolve: Resolve) -> list[str]:
    """Empty if the host has no address or the lookup takes too long. The system's resolver cannot be interrupted, so a
    lookup that takes too long goes on in its thread. Raises the errors of `shortage_in`."""
    results: queue.SimpleQueue[list[str] | EaselError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            results.put(resolve(address.host, address.port))
        except (OSError, UnicodeError) as error:
            results.put(shortage_in(error) or [])

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        result = results.get(timeout=max(0.0, timeout_s))
    except queue.Empty:
        return []
    if isinstance(result, EaselError):
        raise result
    return result


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
