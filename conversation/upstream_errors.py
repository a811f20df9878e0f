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
        re.compile(r"no models? (is|are) (currently )?loaded|model is not loaded", re.I),
        SlotNotReady,
        "unloaded",
    ),
)
"""What llama-server and TabbyAPI say while a model is not ready"""
_TAG = re.compile(r"<(style|script)[^>]*>.*?</\1>|<[^>]*>", re.S | re.I)


def unusable(target: Target, status: int, headers: HTTPMessage) -> EaselError | None:
    """The error for an answer that says that the upstream is not set up right, whatever its body is; None if it may be an
    answer."""
    where = _where(target)
    if status in (401, 403):
        return UpstreamUnavailable(
            f"{where} {key_problem(target.upstream)}.", upstream=target.upstream.name, status=status
        )
    if 300 <= status < 400 or status < 200:
        place = shorten(target.upstream.without_key(headers.get("Location", "")), _QUOTED_CHARS)
        to = f" to {place}" if place else ""
        return UpstreamUnavailable(
            f"{where} answered {status} and redirects{to}, which is not followed. If that is the right address, write it "
            "as its `url`.",
            upstream=target.upstream.name,
            status=status,
        )
    return None


def error_of(target: Target, status: int, body: bytes) -> EaselError | None:
    """The error for an answer with a status from 400 whose body is no error that clients could read; also for one that says
    that a model is not ready. None: the client gets the body as it is."""
    document = parse(body)
    text = message_of(document) or ("" if document is not None else _text(body))
    text = shorten(target.upstream.without_key(text), _QUOTED_CHARS)
    for pattern, error_class, state in _STATES:
        if status in (400, 503) and pattern.search(text):
            return error_class(
                f"{_where(target)} does not have {target.model!r} ready: {text}",
                slot=target.asked_for,
                state=state,
                upstream=target.upstream.name,
                retry_after_s=_RETRY_AFTER_S,
            )
    if document is not None and status < 500:
        return None
    if isinstance(document, Mapping) and isinstance(document.get("error"), Mapping | str):
        return None
    return failed(target, f"answered {status}", text, status=status)


def failed(target: Target, what: str, text: str = "", **details: Any) -> UpstreamFailed:
    """The error for an answer that is none. `text`: from the upstream."""
    quoted = shorten(target.upstream.without_key(text), _QUOTED_CHARS)
    return UpstreamFailed(
        f"{_where(target)} {what}{f': {quoted}' if quoted else '.'}", upstream=target.upstream.name, **details
    )


def _where(target: Target) -> str:
    return f"The upstream {target.upstream.name} at {target.upstream.url}"


def as_envelope(document: Any, *, upstream: str) -> dict[str, Any]:
    """The envelope for an error that an upstream sent as JSON, with its fields."""
    error = document.get("error") if isinstance(document, Mapping) else None
    known = dict(error) if isinstance(error, Mapping) else {}
    return {
        "error": {
            "message": message_of(document) or "The upstream reports an error.",
            "type": "server_error",
            "param": None,
            "code": UpstreamFailed.code,
            **{name: value for name, value in known.items() if name != "message"},
            "details": {"upstream": upstream},
        }
    }


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
    if not isinstance(document, Mapping):
        return document if isinstance(document, str) else ""
    error = document.get("error")
    candidates = [
        error.get("message") if isinstance(error, Mapping) else error,
        document.get("message"),
        document.get("detail"),
    ]
    return next((text for text in candidates if isinstance(text, str) and text), "")


def _text(body: bytes) -> str:
    """The words of a text or a page."""
    return " ".join(_TAG.sub(" ", body.decode("utf-8", "replace")).split())
