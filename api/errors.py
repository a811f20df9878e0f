"""Maps errors to HTTP responses: status, type and headers. The only module that does."""

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
from access import Caller
from api.host_rules import own_url
from api.key_limits import levels_of, limit_headers
from api.paths import GALLERY, STORED_IMAGES
from api.services import HttpOptions
from api.unknown_path import unknown_path
from conversation import in_dialect
from errors import EaselError, shorten
from logs import facts
from system_errors import system_error_in

log = logging.getLogger("easel.api")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected; it appears in the log only"""

STATUS: Mapping[type[EaselError], int] = {
    errors.EaselError: 500,
    errors.InvalidRequest: 400,
    errors.NotJson: 415,
    errors.WrongContentType: 415,
    errors.BodyTooLarge: 413,
    errors.BodyTimeout: 408,
    errors.HeadTimeout: 408,
    errors.TooManyConnections: 429,
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
    errors.KeysUnreadable: 503,
    errors.KeyNotFound: 404,
    errors.ScopeMissing: 403,
    errors.KeyLimit: 403,
    errors.KeyLimitReached: 429,
    errors.HostNotAllowed: 403,
    errors.OriginNotAllowed: 403,
    errors.QueueFull: 429,
    errors.RequestCancelled: CLIENT_CLOSED_REQUEST,
    errors.ServerStopping: 503,
    errors.TooManyEventStreams: 503,
    errors.ServerUnreachable: 503,
    errors.TooManyFiles: 503,
    errors.OutOfMemory: 503,
    errors.EngineUnreachable: 503,
    errors.EngineDrained: 503,
    errors.EngineNotListed: 503,
    errors.ClusterError: 503,
    errors.NodesMissing: 503,
    errors.EngineTooOld: 503,
    errors.FilesMissing: 503,
    errors.SketchCannotRun: 503,
    errors.ModelNotDrawable: 503,
    errors.LicenceNotAccepted: 403,
    errors.WorkflowExists: 409,
    errors.WorkflowNotSaved: 502,
    errors.JobInterrupted: 503,
    errors.JobLost: 503,
    errors.EngineStalled: 503,
    errors.JobTimedOut: 504,
    errors.EngineStartFailed: 503,
    errors.GpuBusy: 503,
    errors.GpuInGenerationMode: 503,
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
    errors.NoRoute: 404,
    errors.UpstreamUnavailable: 502,
    errors.SlotLoading: 503,
    errors.StackUnreachable: 503,
    errors.StackRefused: 503,
    errors.StoreFull: 507,
    errors.FavouritesFull: 507,
    errors.NoThumbnail: 404,
    errors.IndexUnavailable: 503,
    errors.SearchTimedOut: 503,
    errors.ListLimitReached: 429,
    errors.ModelsFolderMissing: 409,
    errors.ModelPathUnsafe: 409,
    errors.ModelDiskFull: 507,
    errors.DownloadFailed: 502,
    errors.ModelFileBusy: 409,
    errors.PullNotFound: 404,
    errors.IdempotencyKeyReused: 422,
    errors.ImageJobNotFound: 404,
    errors.ImageJobsFull: 429,
    errors.ImageJobDamaged: 500,
    errors.ImageJobInterrupted: 500,
    errors.JobPicturesRemoved: 410,
}
"""Status of each error class; a class that is not listed has the status of its parent."""

_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUSES_RETRIED_BY_CLIENTS = (408, 409, 429)
_DEFAULT_RETRY_AFTER_S = 5
_MAX_RETRIED_WAIT_S = 300
"""The SDKs do not wait for a longer `Retry-After`: they retry within seconds, which is in vain. No other wait is longer
than that of a limit for the day."""
_MAX_DETAIL_LENGTH = 4000
"""Characters of one text in `details`; a value that is refused may have 30 million"""


def status_of(error_class: type[EaselError]) -> int:
    """The HTTP status of an error class."""
    return next(STATUS[parent] for parent in error_class.__mro__ if parent in STATUS)


def is_mistake_of_client(error: EaselError) -> bool:
    """Whether the same request gets the same error again, as long as the catalogue and the settings stay."""
    status = status_of(type(error))
    return 400 <= status < 499 and status not in _STATUSES_RETRIED_BY_CLIENTS


def envelope(error: EaselError) -> dict[str, Any]:
    """The JSON body for `error`: OpenAI's four keys and `details`."""
    status = status_of(type(error))
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": error.param,
            "code": error.code,
            "details": _json_safe(error.details),
        }
    }


def _json_safe(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by strings, and shorten texts that a client sent."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return shorten(value, _MAX_DETAIL_LENGTH)
    if isinstance(value, Mapping):
        return {key: _json_safe(inner) for key, inner in value.items()}
    return [_json_safe(inner) for inner in value] if isinstance(value, list | tuple) else value


def retry_headers(error: EaselError) -> dict[str, str]:
    """The headers that tell clients whether and when to send the request again."""
    status = status_of(type(error))
    headers: dict[str, str] = {}
    # None: it is unknown when a retry could succeed, so clients should not retry automatically.
    retry_after_s = error.details.get("retry_after_s", _DEFAULT_RETRY_AFTER_S) if error.retry else None
    if status >= 500 or status in _STATUSES_RETRIED_BY_CLIENTS:
        # By default the SDKs retry these statuses twice; retrying what cannot succeed wastes GPU time.
        is_soon = retry_after_s is not None and retry_after_s <= _MAX_RETRIED_WAIT_S
        headers["x-should-retry"] = "true" if is_soon else "false"
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return headers


def error_response(error: EaselError) -> Response:
    """The response for `error`, with the headers that tell clients whether to retry."""
    error = _for_caller(error)
    g.error_code = error.code  # for the metrics and the access log
    response = jsonify(in_dialect(envelope(error), g.get("error_dialect", "openai")))
    response.status_code = status_of(type(error))
    response.headers.update(retry_headers(error))
    if isinstance(error, errors.KeyLimitReached):
        response.headers.update(limit_headers(levels_of(error.details["windows"])))
    if isinstance(error, errors.InvalidKey):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _for_caller(error: EaselError) -> EaselError:
    """`error` without the names of models that the caller's key does not allow."""
    caller: Caller | None = g.get("caller")
    if caller is None or caller.limits.models is None:
        return error
    if not isinstance(
        error, errors.ModelNotCurated | errors.NoRoute | errors.ModelMissing
    ) or not error.details.get("models"):
        return error
    names = errors.list_names(caller.limits.models)
    return type(error)(
        f"There is no such model. The key {caller.name} may use {names}.",
        param=error.param,
        models=list(caller.limits.models[: errors.MAX_NAMED]),
    )


def register_errors(app: Flask, options: HttpOptions) -> None:
    """Answer every error in `app` with the JSON error envelope."""
    app.register_error_handler(EaselError, _handle_easel_error)
    app.register_error_handler(
        NotFound, lambda error: error_response(unknown_path(request, app.url_map, own_url(request, options)))
    )
    app.register_error_handler(HTTPException, _handle_http_exception)
    app.register_error_handler(Exception, _handle_unexpected_error)


def escaped_path() -> str:
    """The request's path for the log, percent-encoded: a client can put line breaks and terminal codes into it. Without
    the name of a stored image, because whoever knows the name may see the image."""
    path = request.path
    for prefix in (STORED_IMAGES, f"{GALLERY}/"):
        if path.startswith(prefix):
            return f"{prefix}…"
    return quote(path)


def _handle_easel_error(error: EaselError) -> Response:
    if status_of(type(error)) >= 500:
        request_id = g.get("request_id", "-")
        log.error(
            "%s %s: %s: %s",
            *(request_id, escaped_path(), error.code, error.message),
            extra=facts(request_id=request_id, code=error.code),
        )
    return error_response(error)


def _handle_http_exception(error: HTTPException) -> Response:
    response = error_response(_to_easel_error(error))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    if isinstance(error, RequestedRangeNotSatisfiable) and error.length is not None:
        response.headers["Content-Range"] = f"bytes */{error.length}"
    return response


def _to_easel_error(error: HTTPException) -> EaselError:
    if isinstance(error, MethodNotAllowed):
        return errors.MethodNotAllowed(f"{request.path} does not support {request.method}.")
    if isinstance(error, RequestedRangeNotSatisfiable):
        return errors.RangeNotSatisfiable("The range is outside the image.")
    if isinstance(error, RequestEntityTooLarge):
        return errors.BodyTooLarge(
            f"The body is larger than the {request.max_content_length} bytes that this path accepts.",
            limit=request.max_content_length,
        )
    if error.code is not None and error.code < 500:
        return errors.InvalidRequest(error.description or error.name)
    return _internal_error()


def _handle_unexpected_error(error: Exception) -> Response:
    reason = system_error_in(error)
    if reason is not None:
        return _handle_easel_error(reason)
    request_id = g.get("request_id", "-")
    log.error(
        "%s %s failed",
        *(request_id, escaped_path()),
        exc_info=error,
        extra=facts(request_id=request_id, code=EaselError.code),
    )
    return error_response(_internal_error())


def _internal_error() -> EaselError:
    return EaselError("Internal server error.", request_id=g.get("request_id"))
