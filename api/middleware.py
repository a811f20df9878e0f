"""Runs around every route: request ids, the checks of Host, Origin and API key, CORS, the access log and path cleanup."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from flask import Flask, Response, g, request

from access import ALL_SCOPES, ANONYMOUS, NOBODY, Caller
from api.connection import discard_body, set_send_timeout
from api.errors import escaped_path
from api.host_rules import HostRules
from api.paths import STORED_IMAGES
from api.services import HttpOptions, WsgiApp
from errors import InvalidKey

log = logging.getLogger("easel.access")

_OPEN_PATHS = re.compile(rf"/health|/ready|/openapi\.json|{STORED_IMAGES}.*")
"""Paths that need no key: the probes, the API description, and images, whose names cannot be guessed"""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPOSED_HEADERS = "x-request-id, x-should-retry, Retry-After, ETag"


def register_middleware(app: Flask, options: HttpOptions) -> None:
    """Run the checks before every route of `app`, and add the headers to every response."""
    rules = HostRules(options)
    callers = {key.encode(): _caller(number) for number, key in enumerate(options.api_keys, start=1)}
    app.before_request(_start_request)
    app.before_request(lambda: rules.check_host(request))
    app.before_request(lambda: _preflight(rules))
    app.before_request(lambda: rules.check_origin(request))
    app.before_request(lambda: _check_key(callers))
    app.after_request(lambda response: _finish_response(response, rules))


def _start_request() -> None:
    client_id = request.headers.get("x-request-id", "")
    g.request_id = client_id if _REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
    g.caller = NOBODY
    g.started_at = time.perf_counter()


def _preflight(rules: HostRules) -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    response = Response(status=204)
    origin = request.headers.get("Origin", "")
    rules.log_refused_preflight(origin)
    if rules.is_allowed_origin(origin):
        response.headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, OPTIONS"
        # The SDKs send a dozen x-stainless-* headers, different ones in each version.
        requested_headers = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Allow-Headers"] = requested_headers
        response.headers["Access-Control-Max-Age"] = "600"
    return response


def _caller(number: int) -> Caller:
    name = f"api_keys:{number}"
    return Caller(name, ALL_SCOPES, key=name)


def _check_key(callers: dict[bytes, Caller]) -> None:
    if not callers:
        g.caller = ANONYMOUS
        return
    sent_key = _sent_key().encode()
    # Always compare with every key, so that the response time reveals nothing about which key was close.
    matches = [caller for key, caller in callers.items() if hmac.compare_digest(sent_key, key)]
    if matches:
        g.caller = matches[0]
    elif not _OPEN_PATHS.fullmatch(request.path):
        raise InvalidKey("This server requires an API key: send `Authorization: Bearer KEY`.")


def _sent_key() -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return request.headers.get("api-key") or request.headers.get("x-api-key", "")


def _finish_response(response: Response, rules: HostRules) -> Response:
    discard_body(request)
    set_send_timeout(request)
    request_id = g.get("request_id", "-")
    response.headers["x-request-id"] = request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    origin = request.headers.get("Origin", "")
    if request.method == "OPTIONS":
        response.headers.pop("Content-Type", None)  # the response has no body
    if rules.varies_by_origin:
        response.vary.add("Origin")
    if rules.is_allowed_origin(origin):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    elapsed_ms = (time.perf_counter() - g.get("started_at", time.perf_counter())) * 1000
    log.info(
        "%s %s %s %d %.1fms", request_id, request.method, escaped_path(), response.status_code, elapsed_ms
    )
    return response


# --- before Flask sees the request -----------------------------------------------------------------


class PathNormalizer:
    """Removes doubled and trailing slashes: clients often join URLs wrongly, and a redirect would drop a POST body."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = re.sub("/{2,}", "/", environ.get("PATH_INFO", "") or "/")
        environ["PATH_INFO"] = path.rstrip("/") or "/"
        return self._app(environ, start_response)
