"""Runs around every route: request ids, the checks of Host, Origin and API key, CORS, the access log and path cleanup."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Flask, Response, g, request

from access import NOBODY, Gate
from api.connection import discard_body, set_send_timeout
from api.errors import escaped_path
from api.host_rules import HostRules
from api.idempotency import may_outlive_connection
from api.key_limits import limit_headers
from api.permissions import ANY_KEY, permission_of, require
from api.services import HttpOptions, WsgiApp
from errors import EaselError
from logs import facts
from observer import BeginTrace, Observer, RequestTrace, ResponseReport

log = logging.getLogger("easel.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPOSED_HEADERS = ", ".join(
    [
        *("x-request-id", "x-should-retry", "Retry-After", "ETag", "Location", "Preference-Applied"),
        *("idempotency-replayed", "idempotency-stored"),
        *(
            f"x-ratelimit-{value}-{what}"
            for what in ("requests", "images")
            for value in ("limit", "remaining", "reset")
        ),
    ]
)


def register_middleware(
    app: Flask, options: HttpOptions, gate: Gate, observer: Observer, begin_trace: BeginTrace | None
) -> None:
    """Run the checks before every route of `app`, and add the headers to every response. `observer` is told of each."""
    rules = HostRules(options)
    app.before_request(_start_request)
    if begin_trace is not None:
        app.before_request(lambda: None if g.get("is_head") else _begin_trace(begin_trace))
    app.before_request(lambda: rules.check_host(request))
    app.before_request(lambda: _preflight(rules))
    app.before_request(lambda: rules.check_origin(request))
    app.before_request(lambda: _check_caller(gate))
    # Not for the head alone: each request is counted once.
    app.before_request(lambda: None if g.get("is_head") else _count_request(gate))
    app.after_request(lambda response: _finish_response(response, rules))
    app.after_request(lambda response: _report(response, observer))


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
        response.headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
        # The SDKs send a dozen x-stainless-* headers, different ones in each version.
        requested_headers = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Allow-Headers"] = requested_headers
        response.headers["Access-Control-Max-Age"] = "600"
    return response


def _check_caller(gate: Gate) -> None:
    """Find out who sent the request, and whether they may."""
    needed = permission_of(request.method, request.url_rule.rule if request.url_rule else None)
    try:
        g.caller = gate.caller_of(_sent_key())
    except EaselError:
        if needed.scopes is not None:
            raise
        return  # anybody may
    if needed.scopes is not None and needed is not ANY_KEY:
        require(g.caller, *needed.scopes)


def _count_request(gate: Gate) -> None:
    needed = permission_of(request.method, request.url_rule.rule if request.url_rule else None)
    takes_place = needed.takes_place or not may_outlive_connection(request)
    g.use = gate.admit(g.caller, takes_place=takes_place) if needed.is_counted else None


def _sent_key() -> bytes:
    """The key as the client sent it, empty if it sent none. Keys in the query of a URL do not count: URLs are logged."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = request.headers.get("api-key") or request.headers.get("x-api-key", "")
    return key.strip().encode("latin-1", "replace")


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
    if (use := g.get("use")) is not None:
        response.headers.update(limit_headers(use.levels))
        response.call_on_close(use.close)
    elapsed_ms = (time.perf_counter() - g.get("started_at", time.perf_counter())) * 1000
    code = g.get("error_code")
    log.info(
        "%s %s %s %d %.1fms%s",
        *(request_id, request.method, escaped_path(), response.status_code, elapsed_ms),
        f" {code}" if code else "",
        extra=facts(
            request_id=request_id,
            method=request.method,
            path=escaped_path(),
            status=response.status_code,
            ms=round(elapsed_ms, 1),
            key=g.caller.key or None if "caller" in g else None,
            code=code,
        ),
    )
    return response


def _route() -> str:
    return request.url_rule.rule if request.url_rule is not None else ""


def _begin_trace(begin_trace: BeginTrace) -> None:
    sent = {name: value for name in ("traceparent", "tracestate") if (value := request.headers.get(name))}
    g.trace = begin_trace(sent, f"{request.method} {_route()}".rstrip())


def _report(response: Response, observer: Observer) -> Response:
    code = g.get("error_code", "")
    observer.response(ResponseReport(_route(), request.method, response.status_code, code))
    if "trace" in g:
        response.call_on_close(_end_of_trace(g.trace, response.status_code, code))
    return response


def _end_of_trace(trace: RequestTrace, status: int, code: str) -> Callable[[], None]:
    facts: dict[str, str | int] = {
        "http.request.method": request.method,
        "http.route": _route(),
        "http.response.status_code": status,
        "easel.request_id": g.request_id,
        "easel.key": g.caller.key,
    }
    if code:
        facts["error.type"] = code
    return lambda: trace.end(facts, is_error=status >= 500)


# --- before Flask sees the request -----------------------------------------------------------------


class PathNormalizer:
    """Removes doubled and trailing slashes: clients often join URLs wrongly, and a redirect would drop a POST body."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = re.sub("/{2,}", "/", environ.get("PATH_INFO", "") or "/")
        environ["PATH_INFO"] = path.rstrip("/") or "/"
        return self._app(environ, start_response)


class InProgress:
    """Tells `observer` how many requests are in progress, up to their last byte."""

    def __init__(self, app: WsgiApp, observer: Observer) -> None:
        self._app, self._observer = app, observer

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._observer.requests_in_progress(1)
        try:
            body = self._app(environ, start_response)
        except BaseException:
            self._observer.requests_in_progress(-1)
            raise
        return _Body(body, lambda: self._observer.requests_in_progress(-1))


class _Body:
    """The parts of a response; calls `on_close` when the server has sent it, or gives it up."""

    def __init__(self, parts: Iterable[bytes], on_close: Callable[[], None]) -> None:
        self._parts, self._on_close = parts, on_close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        try:
            if close := getattr(self._parts, "close", None):
                close()
        finally:
            self._on_close()
