"""Who may come in, and what every request and answer carries: ids, keys, Host and Origin, CORS, clean paths."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from api.connection import discard_body, limit_sending
from api.errors import quoted_path
from api.services import HttpOptions
from errors import HostNotAllowed, InvalidKey, OriginNotAllowed
from loopback import is_loopback

log = logging.getLogger("easel.access")

_OPEN_PATHS = re.compile(r"/health|/ready|/openapi\.json|/api/images/cache/.*")
"""Without a key: what monitors ask, what describes the API, and images under names that nobody can guess."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPOSED = "x-request-id, x-should-retry, Retry-After, ETag"

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


def register_middleware(app: Flask, options: HttpOptions) -> None:
    """Put the gate before every route of `app`, and its headers on every answer."""
    app.before_request(_begin)
    app.before_request(lambda: _check_host(options))
    app.before_request(lambda: _preflight(options))
    app.before_request(lambda: _check_origin(options))
    app.before_request(lambda: _check_key(options))
    app.after_request(lambda response: _finish(response, options))


def _begin() -> None:
    given = request.headers.get("x-request-id", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    g.began = time.perf_counter()


def _check_host(options: HttpOptions) -> None:
    """On loopback only a loopback name is believed: any web page can point its own name at 127.0.0.1."""
    name = _host_name(request.host)
    if options.on_loopback and not is_loopback(name) and name not in options.allowed_hosts:
        raise HostNotAllowed(f"This server listens on loopback and does not answer to {name!r}.", host=name)


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _preflight(options: HttpOptions) -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    response = Response(status=204)
    if _is_allowed(request.headers.get("Origin", ""), options):
        response.headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, OPTIONS"
        # The SDKs send a dozen x-stainless-* headers; which, changes from version to version.
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Allow-Headers"] = wanted
        response.headers["Access-Control-Max-Age"] = "600"
    return response


def _check_origin(options: HttpOptions) -> None:
    origin = request.headers.get("Origin")
    if origin is None or request.method in _SAFE_METHODS or _is_allowed(origin, options):
        return
    if origin != request.host_url.rstrip("/"):
        raise OriginNotAllowed(f"Web pages of {origin} may not call this server.", origin=origin)


def _is_allowed(origin: str, options: HttpOptions) -> bool:
    return bool(origin) and ("*" in options.allowed_origins or origin in options.allowed_origins)


def _check_key(options: HttpOptions) -> None:
    if not options.api_keys or _OPEN_PATHS.fullmatch(request.path):
        return
    given = _given_key().encode()
    # Compare with every key, so that the time tells nothing about which one it nearly was.
    matches = [hmac.compare_digest(given, key.encode()) for key in options.api_keys]
    if not any(matches):
        raise InvalidKey("This server wants an API key: send `Authorization: Bearer KEY`.")


def _given_key() -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return request.headers.get("api-key") or request.headers.get("x-api-key", "")


def _finish(response: Response, options: HttpOptions) -> Response:
    discard_body(request)
    limit_sending(request)
    request_id = g.get("request_id", "-")
    response.headers["x-request-id"] = request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    origin = request.headers.get("Origin", "")
    if request.method == "OPTIONS":
        response.headers.pop("Content-Type", None)  # there is no body for it to be the type of
    if options.allowed_origins:
        response.vary.add("Origin")
    if _is_allowed(origin, options):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
    took_ms = (time.perf_counter() - g.get("began", time.perf_counter())) * 1000
    log.info("%s %s %s %d %.1fms", request_id, request.method, quoted_path(), response.status_code, took_ms)
    return response


# --- before Flask sees the request -----------------------------------------------------------------


class PathNormalizer:
    """Doubled and trailing slashes away: clients join base URLs carelessly, and a redirect would lose their POST."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = re.sub("/{2,}", "/", environ.get("PATH_INFO", "") or "/")
        environ["PATH_INFO"] = path.rstrip("/") or "/"
        return self._app(environ, start_response)


class TrustedProxies:
    """`X-Forwarded-*` headers count only when they come from one of our own proxies."""

    def __init__(self, app: WsgiApp, proxies: tuple[str, ...]) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
        self._proxies = frozenset(proxies)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        trusted = environ.get("REMOTE_ADDR") in self._proxies
        return (self._behind_proxy if trusted else self._app)(environ, start_response)
