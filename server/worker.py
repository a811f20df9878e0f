"""gunicorn's threaded worker, with JSON error responses for requests that never reach the application, too."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import uuid
from http import HTTPStatus
from typing import Any

from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from api import envelope, status_of
from errors import EaselError, InvalidRequest

_PAGE = re.compile(rb"HTTP/1\.1 (\d{3}) ([^\r\n]*)\r\n.*</h1>(.*)</body>", re.DOTALL)
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


def block_stop_signals_until_forked() -> None:
    """Call it in the master before it forks a worker. Until the worker has its own signal handlers it has the master's,
    which would swallow a SIGTERM: the worker would run on until it is killed after `graceful_timeout`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def _unblock_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


os.register_at_fork(after_in_parent=_unblock_stop_signals)


class EaselWorker(ThreadWorker):
    """gunicorn chooses the status of a malformed request and logs it; only its HTML error page is replaced."""

    def init_signals(self) -> None:
        """Install the handlers, then unblock the stop signals that arrived since the fork."""
        super().init_signals()
        _unblock_stop_signals()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Send the JSON envelope if a request could not be parsed or its handling raised."""
        recorder: Any = _PageRecorder()
        super().handle_error(req, recorder, addr, exc)
        try:
            write_nonblock(client, _json_response(*recorder.page()))
        except OSError:
            self.log.debug("The client has disconnected; the error was not sent.")


class _PageRecorder:
    """Stands in for the client's socket while gunicorn writes its HTML error page."""

    def __init__(self) -> None:
        self._written = b""

    def gettimeout(self) -> float:
        return 0.0

    def sendall(self, data: bytes) -> None:
        self._written += data

    def page(self) -> tuple[int, str, str]:
        """Status, reason and message of the page."""
        match = _PAGE.match(self._written)
        if match is None:
            return 500, "Internal Server Error", ""
        return int(match[1]), match[2].decode("latin-1"), html.unescape(match[3].decode("latin-1")).strip()


def _json_response(status: int, reason: str, message: str) -> bytes:
    error = InvalidRequest(message) if status < 500 else EaselError("Internal server error.")
    if status >= 500:
        status, reason = status_of(EaselError), HTTPStatus(status_of(EaselError)).phrase
    body = json.dumps(envelope(error)).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\n"
        f"Connection: close\r\nx-request-id: {uuid.uuid4().hex}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body
