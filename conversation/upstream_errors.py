"""What an upstream's answer means if it is none: errors in any form become those of `errors.py`, or the envelope that
OpenAI's clients read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import Any

from conversation.directory import Target
from conversation.problems import key_problem
from conversation.routes import Dialect
from errors import EaselError, SlotLoading, SlotNotReady, UpstreamFailed, UpstreamUnavailable, shorten

_QUOTED_CHARS = 300
_RETRY_AFTER_S = 5
_STATES: tuple[tuple[re.Pattern[str], type[SlotLoading], str], ...] = (
    (re.compile(r"loading model|model is (still )?loading|is being loaded", re.I), SlotLoading, "loading"),
    (
        re.compile(
            r"no models? ((is|are) )?(currently )?loaded|model (is )?not loaded|model is unloaded", re.I
        ),
        SlotNotReady,
        "unloaded",
    ),
)
"""What llama-server, TabbyAPI, LM Studio and Moonshine say while a model is not ready"""
_RESULT_FIELDS = (
    "choices",
    "content",
    "data",
    "embedding",
    "embeddings",
    "output",
    "response",
    "results",
    "text",
)
"""Those of the answers of all routes"""
_TAG = re.compile(r"<(style|script)[^>]*>.*?</\1>|<[^>]*>", re.S | re.I)


def unusable(target: Target, status: int, headers: HTTPMessage) -> EaselError | None:
    """The error for an answer that says that the upstream is not set up right, whatever its body is; None if it may be an
    answer."""
    where = _where(target)
    if status == 401:
        return _key_rejected(target, status)
    if 300 <= status < 400 or status < 200:
        place = shorten(target.upstream.without_secrets(headers.get("Location", "")), _QUOTED_CHARS)
        to = f" to {place}" if place else ""
        return UpstreamUnavailable(
            f"{where} answered {status} and redirects{to}, which is not followed. If that is the right address, write it "
            "as its `url`.",
            upstream=target.upstream.name,
            status=status,
            retry_after_s=None,
        )
    return None


def _key_rejected(target: Target, status: int) -> UpstreamUnavailable:
    return UpstreamUnavailable(
        f"{_where(target)} {key_problem(target.upstream)}.",
        upstream=target.upstream.name,
        status=status,
        retry_after_s=None,
    )


def error_of(target: Target, status: int, body: bytes) -> EaselError | None:
    """The error for an answer with a status from 400 whose body is no error that clients could read; also for one that says
    that a model is not ready. None: the client gets the body as it is."""
    document = parse(body)
    if status == 403 and not message_of(document):
        # With a message it is about this request: a model that the key may not use, or a filter (OpenRouter, OpenAI).
        return _key_rejected(target, status)
    text = message_of(document) or ("" if document is not None else text_of(body))
    text = shorten(target.upstream.without_secrets(text), _QUOTED_CHARS)
    for pattern, error_class, state in _STATES:
        if status in (400, 503) and pattern.search(text):
            return error_class(
                f"{_where(target)} does not have {target.model!r} ready: {text}",
                slot=target.asked_for,
                state=state,
                upstream=target.upstream.name,
                retry_after_s=_RETRY_AFTER_S,
            )
    if status < 500:
        return None
    if isinstance(document, Mapping) and isinstance(document.get("error"), Mapping | str):
        return None
    return failed(target, f"answered {status}", text, status=status)


def text_of(body: bytes) -> str:
    """The words of a text or a page."""
    return " ".join(_TAG.sub(" ", body.decode("utf-8", "replace")).split())


def failed(target: Target, what: str, text: str = "", **details: Any) -> UpstreamFailed:
    """The error for an answer that is none. `text`: from the upstream."""
    quoted = shorten(target.upstream.without_secrets(text), _QUOTED_CHARS)
    return UpstreamFailed(
        f"{_where(target)} {what}{f': {quoted}' if quoted else '.'}", upstream=target.upstream.name, **details
    )


def _where(target: Target) -> str:
    return f"The upstream {target.upstream.name} at {target.upstream.url}"


def as_envelope(document: Any, *, upstream: str, status: int = 500) -> dict[str, Any]:
    """The envelope for an error that an upstream sent as JSON, with its fields. `status`: of the response."""
    return {
        "error": {
            "message": message_of(document) or "The upstream reports an error.",
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "param": None,
            "code": UpstreamFailed.code,
            **{name: value for name, value in _fields_of(document).items() if name != "message"},
            "details": {"upstream": upstream},
        }
    }


def _fields_of(document: Any) -> Mapping[str, Any]:
    """The fields of an error; FastAPI's have them in `detail`, with a code named `error`."""
    if not isinstance(document, Mapping):
        return {}
    for name in ("error", "detail"):
        if isinstance(value := document.get(name), Mapping):
            inner = _fields_of(value)
            code = value.get("error")
            return inner or ({**value, "code": code} if isinstance(code, str) else value)
    return {}


def is_readable(document: Any, dialect: Dialect) -> bool:
    """Whether the clients of a dialect can read this error."""
    error = document.get("error") if isinstance(document, Mapping) else None
    if dialect == "ollama":
        return isinstance(error, str)
    has_message = isinstance(error, Mapping) and isinstance(error.get("message"), str)
    return has_message and (dialect == "openai" or document.get("type") == "error")


def in_dialect(envelope: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The envelope of an error in the form that clients of a dialect read."""
    if dialect == "anthropic":
        return {"type": "error", **envelope}
    if dialect == "ollama":
        return {"error": envelope["error"]["message"]}
    return dict(envelope)


def parse(body: bytes) -> Any:
    """None if it is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def message_of(document: Any) -> str:
    """The text of an error in the forms that LLM servers use; empty if there is none."""
    if isinstance(document, str):
        return document
    if isinstance(document, list):  # what FastAPI says of each wrong field
        return "; ".join(filter(None, map(_field_message, document)))
    if not isinstance(document, Mapping):
        return ""
    error = document.get("error")
    candidates = [
        message_of(error) if isinstance(error, Mapping) else "",
        document.get("message"),
        error,
        message_of(document.get("detail")),
    ]
    return next((text for text in candidates if isinstance(text, str) and text), "")


def is_error(document: Any) -> bool:
    """Whether an answer with status 200 is an error. One that has a result besides is an answer, such as a response of the
    Responses API that failed."""
    if not isinstance(document, Mapping) or document.get("object") == "response":
        return False
    has_error = bool(document.get("error")) or (
        document.get("object") == "error" and bool(message_of(document))
    )
    return has_error and not any(document.get(name) for name in _RESULT_FIELDS)


def _field_message(entry: Any) -> str:
    if not (isinstance(entry, Mapping) and isinstance(entry.get("msg"), str)):
        return ""
    place = entry.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{where}: {entry['msg']}" if where else entry["msg"]
