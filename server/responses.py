"""Responses to requests that never reach the application, as bytes for a socket."""

from __future__ import annotations

import html
import json
import re
import uuid
from http import HTTPStatus

from api import envelope, retry_headers, status_of
from errors import EaselError, InvalidRequest

_PAGE = re.compile(rb"HTTP/1\.1 (\d{3}) ([^\r\n]*)\r\n.*</h1>(.*)</body>", re.DOTALL)


def error_bytes(error: EaselError, status: int | None = None) -> bytes:
    """The complete response for `error`; `status`: another one than its own. The connection ends with it."""
    status = status or status_of(type(error))
    body = json.dumps(envelope(error)).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        f"x-request-id: {uuid.uuid4().hex}",
        *(f"{name}: {value}" for name, value in retry_headers(error).items()),
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class PageRecorder:
    """Stands in for the client's socket while gunicorn writes its HTML error page."""

    def __init__(self) -> None:
        self._written = b""

    def gettimeout(self) -> float:
        """gunicorn asks for it before it writes."""
        return 0.0

    def sendall(self, data: bytes) -> None:
        """Record what gunicorn sends."""
        self._written += data

    def as_json(self) -> bytes:
        """The response that says the same as the page, with its status. The server's own errors tell nothing."""
        match = _PAGE.match(self._written)
        status = int(match[1]) if match else 500
        if match is None or status >= 500:
            return error_bytes(EaselError("Internal server error."))
        message = html.unescape(match[3].decode("latin-1")).strip()
        return error_bytes(InvalidRequest(message), status)
