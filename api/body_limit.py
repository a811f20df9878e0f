"""Whether a request is worth receiving: asked by the server when it has the head and not yet the body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, g, request
from werkzeug.exceptions import HTTPException

from errors import EaselError

_ANSWER = "easel.body_limit"
"""Key of the environ that asks for the limit instead of a response: a list that receives it"""

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


def body_limit(application: WsgiApp, environ: dict[str, Any]) -> int | None:
    """The largest body in bytes that `application` accepts with this head; None if it refuses the request whatever its
    body is, for instance because the key is wrong. The body is not read."""
    answer: list[int | None] = []
    list(application({**environ, _ANSWER: answer}, lambda *_: None))
    return answer[0]


class HeadCheck:
    """Answers `body_limit` with the checks that run before every route of `app`; passes other requests on."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._wsgi_app = app.wsgi_app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = environ.pop(_ANSWER, None)
        if answer is None:
            return self._wsgi_app(environ, start_response)
        answer.append(self._limit(environ))
        return ()

    def _limit(self, environ: dict[str, Any]) -> int | None:
        with self._app.request_context(environ):
            g.is_head = True
            try:
                if request.routing_exception is not None or self._app.preprocess_request() is not None:
                    return None
            except (EaselError, HTTPException):
                return None
            return request.max_content_length
