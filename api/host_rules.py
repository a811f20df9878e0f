"""Which `Host` and `Origin` headers are accepted, and which proxies are trusted. Every refusal says what to set."""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from flask import Request
from werkzeug.middleware.proxy_fix import ProxyFix

from api.services import HttpOptions, WsgiApp
from errors import HostNotAllowed, OriginNotAllowed, shorten
from loopback import is_loopback

log = logging.getLogger("easel.access")

_FORWARDED_KEY = "easel.forwarded"
_FORWARDED_HEADERS = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO")
_MAX_LOGGED = 100
_PLAIN = re.compile(r"[\w.:/*\[\]@+-]+", re.ASCII)
"""What a shell takes literally, and the lists of variables as one value"""


class HostRules:
    """The rules of one installation.

    On loopback only known host names are accepted: any web page can make its own host name resolve to 127.0.0.1. Known
    are the loopback names, `allowed_hosts`, the host of `public_url`, and every name that a trusted proxy forwards.
    """

    def __init__(self, options: HttpOptions) -> None:
        public = urlsplit(options.public_url)
        self._checks_hosts = options.on_loopback
        self._hosts = frozenset(map(host_name, (*options.allowed_hosts, public.netloc))) - {""}
        self._origins = frozenset(map(_comparable, options.allowed_origins))
        self._public_origin = _comparable(f"{public.scheme}://{public.netloc}") if public.netloc else None
        self._logged: set[str] = set()

    @property
    def varies_by_origin(self) -> bool:
        """Whether responses differ by the `Origin` header."""
        return bool(self._origins)

    def check_host(self, request: Request) -> None:
        """Raises HostNotAllowed."""
        name = host_name(request.host)
        if not self._checks_hosts or is_loopback(name) or name in self._hosts:
            return
        if request.environ.get(_FORWARDED_KEY):
            return
        error = _host_error(name, is_proxied=_FORWARDED_KEY in request.environ)
        self._log_once(error)
        raise error

    def check_origin(self, request: Request) -> None:
        """Raises OriginNotAllowed for a request of a web page of another origin that may change something."""
        origin = request.headers.get("Origin")
        if origin is None or request.method in ("GET", "HEAD", "OPTIONS") or self.is_allowed_origin(origin):
            return
        if _comparable(origin) in (_comparable(request.host_url), self._public_origin):
            return
        # The proxy before a proxy may have ended the encryption, so that a forwarded scheme is not the page's.
        if request.environ.get(_FORWARDED_KEY) and urlsplit(origin).netloc.lower() == request.host.lower():
            return
        error = _origin_error(origin)
        self._log_once(error)
        raise error

    def log_refused_preflight(self, origin: str) -> None:
        """A browser does not tell its user why a preflight failed, so the log does."""
        if origin and not self.is_allowed_origin(origin):
            self._log_once(_origin_error(origin))

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether pages of `origin` may read responses."""
        return bool(origin) and ("*" in self._origins or _comparable(origin) in self._origins)

    def _log_once(self, error: HostNotAllowed | OriginNotAllowed) -> None:
        if error.message not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(error.message)
            log.warning("%s: %s", error.code, error.message)


def _comparable(origin: str) -> str:
    """An origin as it is compared: in lower case, without the default port of its scheme."""
    origin = origin.rstrip("/").lower()
    scheme = origin.partition(":")[0]
    return origin.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ":"))


def _host_error(name: str, *, is_proxied: bool) -> HostNotAllowed:
    if not name:
        return HostNotAllowed(
            "The request has no valid Host header. Send the name or address of this server, such as 127.0.0.1.",
            host="",
        )
    if is_proxied:
        proxy = (
            "The request comes from a trusted proxy without X-Forwarded-For, -Proto or -Host, as a web page on this machine "
            "could send it: let the proxy send them, or set public_url."
        )
    else:
        proxy = "Behind a reverse proxy, set public_url or trusted_proxies instead."
    return HostNotAllowed(
        f"This server listens on loopback and does not accept the host name {shorten(name)!r}. "
        f"{_remedy('allowed_hosts', name)} {proxy}",
        host=name,
        setting="allowed_hosts",
        value=name,
    )


def _origin_error(origin: str) -> OriginNotAllowed:
    return OriginNotAllowed(
        f"Pages and apps of the origin {shorten(origin)!r} may not call this server. "
        f"{_remedy('allowed_origins', origin)}",
        origin=origin,
        setting="allowed_origins",
        value=origin,
    )


def _remedy(setting: str, value: str) -> str:
    shown = shorten(value)
    # A client chose the value: the owner may copy this to a shell, where `$(…)` would run.
    variable = f" (EASEL_{setting.upper()}={shown})" if _PLAIN.fullmatch(shown) else ""
    return f"To allow it, add {shown!r} to the setting {setting}{variable}."


def own_url(request: Request, options: HttpOptions) -> str:
    """Where the client of `request` reaches this server, without a trailing slash."""
    return (options.public_url or request.host_url.rstrip("/") + request.script_root).rstrip("/")


def host_name(host: str) -> str:
    """The name in a `Host` header or in `host:port`, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


class TrustedProxies:
    """Applies `X-Forwarded-*` headers only if the request comes from a configured proxy."""

    def __init__(self, app: WsgiApp, proxies: Iterable[str]) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
        self._is_trusted = in_networks(proxies)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not self._is_trusted(environ.get("REMOTE_ADDR", "")):
            return self._app(environ, start_response)
        environ[_FORWARDED_KEY] = any(name in environ for name in _FORWARDED_HEADERS)
        return self._behind_proxy(environ, start_response)


def in_networks(networks: Iterable[str]) -> Callable[[str], bool]:
    """A function that tells whether an IP address lies in one of `networks`, which are addresses or networks."""
    known = tuple(ipaddress.ip_network(network, strict=False) for network in networks)

    @functools.lru_cache(maxsize=1024)
    def is_in(remote: str) -> bool:
        try:
            address = ipaddress.ip_address(remote.partition("%")[0])
        except ValueError:
            return False
        # A socket for both families names IPv4 clients in IPv6's form.
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in known)

    return is_in if known else lambda _: False
