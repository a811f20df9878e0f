"""Errors -> HTTP: the one place where a named error gets a status, a type and headers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestedRangeNotSatisfiable,
    RequestEntityTooLarge,
)

import errors
from errors import EaselError

log = logging.getLogger("easel.api")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that hung up; nobody reads it but the log."""

STATUS: Mapping[type[EaselError], int] = {
    errors.EaselError: 500,
    errors.InvalidRequest: 400,
    errors.NotJson: 415,
    errors.WrongContentType: 415,
    errors.TooLarge: 413,
    errors.BodyTimeout: 408,
    errors.RangeNotSatisfiable: 416,
    errors.InvalidValue: 400,
    errors.PromptRequired: 422,
    errors.ModelNotCurated: 404,
    errors.ImageRequired: 400,
    errors.ImagesDisabled: 404,
    errors.ImageNotFound: 404,
    errors.RouteNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.InvalidKey: 401,
    errors.HostNotAllowed: 403,
    errors.OriginNotAllowed: 403,
    errors.QueueFull: 429,
    errors.RequestCancelled: CLIENT_CLOSED_REQUEST,
    errors.ServerStopping: 503,
    errors.ServerUnreachable: 503,
    errors.EngineUnreachable: 503,
    errors.NodesMissing: 503,
    errors.FilesMissing: 503,
    errors.JobInterrupted: 503,
    errors.JobLost: 503,
    errors.EngineStalled: 503,
    errors.JobTimedOut: 504,
    errors.EngineStartFailed: 503,
    errors.GpuBusy: 503,
    errors.GpuImageMode: 503,
    errors.SwitchFailed: 503,
    errors.GpuPreempted: 503,
    errors.GpuPinned: 409,
    errors.NotGenerating: 409,
    errors.InvalidMode: 422,
    errors.InvalidPin: 422,
    errors.InvalidForce: 422,
    errors.InvalidCancel: 422,
    errors.JobNotFound: 404,
    errors.RenderCancelled: 409,
    errors.SwitchInProgress: 409,
    errors.ComfyuiBusy: 409,
    errors.ArbiterUnavailable: 503,
    errors.StackUnreachable: 503,
    errors.StackRefused: 503,
    errors.StoreFull: 507,
}
"""Statuses by class; a class that is not here has its parent's."""

_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}
_RETRIED_BY_CLIENTS = (408, 409, 429)
_RETRY_AFTER_S = 5


def status_of(kind: type[EaselError]) -> int:
    """The HTTP status of an error class."""
    return next(STATUS[parent] for parent in kind.__mro__ if parent in STATUS)


def envelope(error: EaselError) -> dict[str, Any]:
    """The JSON body for `error`: OpenAI's four keys and `details`."""
    status = status_of(type(error))
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code,
            "details": _plain(error.details),
        }
    }


def _plain(value: Any) -> Any:
    """The value with numbers that JSON does not have as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def answer(error: EaselError) -> Response:
    """`error` as a response, with the headers that tell clients whether to try again."""
    status = status_of(type(error))
    response = jsonify(envelope(error))
    response.status_code = status
    # None: nobody can say when it would do better, so there is no use in trying again by oneself.
    retry_after_s = error.details.get("retry_after_s", _RETRY_AFTER_S) if error.retry else None
    if status >= 500 or status in _RETRIED_BY_CLIENTS:
        # The SDKs repeat such answers twice unless told; a repeat of what cannot succeed is GPU time lost.
        response.headers["x-should-retry"] = "false" if retry_after_s is None else "true"
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    if isinstance(error, errors.InvalidKey):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def register_errors(app: Flask) -> None:
    """Every way a request can fail in `app` answers with the envelope."""
    app.register_error_handler(EaselError, _named)
    app.register_error_handler(HTTPException, _of_werkzeug)
    app.register_error_handler(Exception, _unforeseen)


def quoted_path() -> str:
    """The request's path for a log line: a client may put line ends and escape codes into it."""
    return quote(request.path)


def _named(error: EaselError) -> Response:
    if status_of(type(error)) >= 500:
        log.error("%s %s: %s: %s", g.get("request_id", "-"), quoted_path(), error.code, error.message)
    return answer(error)


def _of_werkzeug(error: HTTPException) -> Response:
    response = answer(_translated(error))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    if isinstance(error, RequestedRangeNotSatisfiable) and error.length is not None:
        response.headers["Content-Range"] = f"bytes */{error.length}"
    return response


def _translated(error: HTTPException) -> EaselError:
    if isinstance(error, NotFound):
        return errors.RouteNotFound(f"There is nothing at {request.path}.", path=request.path)
    if isinstance(error, MethodNotAllowed):
        return errors.MethodNotAllowed(f"{request.method} is not a method of {request.path}.")
    if isinstance(error, RequestedRangeNotSatisfiable):
        return errors.RangeNotSatisfiable("The range lies outside the image.")
    if isinstance(error, RequestEntityTooLarge):
        return errors.TooLarge("The body is larger than this server takes.", limit=request.max_content_length)
    if error.code is not None and error.code < 500:
        return errors.InvalidRequest(error.description or error.name)
    return EaselError("Something failed inside.", request_id=g.get("request_id"))


def _unforeseen(error: Exception) -> Response:
    log.error("%s %s failed", g.get("request_id", "-"), quoted_path(), exc_info=error)
    return answer(EaselError("Something failed inside.", request_id=g.get("request_id")))
