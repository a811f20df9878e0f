"""Timeouts on the client's connection, and checking whether the client has disconnected. Both work on the socket, because
WSGI offers neither."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Request, g
from werkzeug.exceptions import RequestEntityTooLarge

from errors import BodyTimeout, EaselError, InvalidRequest
from system_errors import shortage_in

BODY_IDLE_TIMEOUT_S = 15.0
"""Maximum time without new data while a body is read"""
BODY_TOTAL_TIMEOUT_S = 180.0
"""Maximum time to read a whole body; a request that sends it slowly counts towards `max_waiting` all that time"""
SEND_TIMEOUT_S = 60.0
"""Maximum time a client may take to accept one chunk of a response (at most a megabyte)"""
DISCARD_IDLE_TIMEOUT_S = 0.3
DISCARD_TOTAL_TIMEOUT_S = 2.0


def read_body(request: Request, idle_timeout_s: float = BODY_IDLE_TIMEOUT_S) -> bytes:
    """The complete body. Raises BodyTimeout, InvalidRequest if it is broken, and werkzeug's RequestEntityTooLarge."""
    with body_timeouts(request, idle_timeout_s):
        return request.get_data(cache=False)


@contextlib.contextmanager
def body_timeouts(
    request: Request,
    idle_timeout_s: float = BODY_IDLE_TIMEOUT_S,
    total_timeout_s: float = BODY_TOTAL_TIMEOUT_S,
) -> Iterator[None]:
    """Read the body inside this context. Turns all read errors into BodyTimeout or InvalidRequest, and a shortage of this
    server (a full disk, no memory, too many open files) into its own error: the client is not to blame."""
    connection = _body_socket(request.environ)
    with (
        _socket_timeout(connection, idle_timeout_s),
        _read_deadline(connection, total_timeout_s) as has_expired,
    ):
        try:
            yield
            g.body_was_read = True
        except (RequestEntityTooLarge, EaselError):
            raise
        except Exception as error:
            if shortage := shortage_in(error):
                raise shortage from error
            if has_expired():
                raise BodyTimeout(f"The body did not arrive within {total_timeout_s:g} s.") from error
            # werkzeug wraps a socket's timeout in its own error.
            if isinstance(error, TimeoutError) or isinstance(
                error.__cause__ or error.__context__, TimeoutError
            ):
                raise BodyTimeout(
                    f"The body is not complete, and no data arrived for {idle_timeout_s:g} s."
                ) from error
            # gunicorn's reader raises its own errors for invalid chunks and for clients that disconnect.
            raise InvalidRequest("The body is incomplete or its chunked encoding is not valid.") from error


def discard_body(request: Request) -> None:
    """Read and drop the rest of a body that the application did not read, for a short time only.

    Otherwise gunicorn would block a thread for seconds to read it, for every client that sends only a part.
    """
    connection = _body_socket(request.environ)
    has_body = request.content_length or "Transfer-Encoding" in request.headers
    if connection is None or not has_body or g.get("body_was_read"):
        return
    # The socket timeout is not enough: one read by gunicorn continues as long as single bytes arrive.
    timer = threading.Timer(DISCARD_TOTAL_TIMEOUT_S, _shut_down_reading, [connection])
    timer.daemon = True
    timer.start()
    try:
        with _socket_timeout(connection, DISCARD_IDLE_TIMEOUT_S):
            while request.environ["wsgi.input"].read(65536):
                pass
    except Exception:
        _shut_down_reading(connection)
    finally:
        timer.cancel()


def _body_socket(environ: dict[str, Any]) -> socket.socket | None:
    """The socket that the body is read from. None if the server does not expose it, or received the whole body before it
    called the application, as `server.worker` does."""
    connection = environ.get("gunicorn.socket")
    is_received = getattr(environ["wsgi.input"], "is_received", False)
    return connection if isinstance(connection, socket.socket) and not is_received else None


@contextlib.contextmanager
def _read_deadline(connection: socket.socket | None, timeout_s: float) -> Iterator[Callable[[], bool]]:
    """Stop reading after `timeout_s`; yields a function that tells whether this happened. The socket timeout is not
    enough: one read by gunicorn continues as long as single bytes arrive."""
    expired = threading.Event()
    if connection is None:
        yield expired.is_set
        return

    def expire() -> None:
        expired.set()
        _shut_down_reading(connection)

    with _deadlines.call_after(timeout_s, expire):
        yield expired.is_set


class _Deadlines:
    """Calls functions at their deadlines, up to half a second late. One thread per process, started on first use: a timer
    per request would cost more than reading most bodies."""

    def __init__(self) -> None:
        self._pending: dict[object, tuple[float, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def call_after(self, timeout_s: float, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` after `timeout_s`, unless the context ends before."""
        key = object()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="easel-deadlines", daemon=True)
                self._thread.start()
            self._pending[key] = (time.monotonic() + timeout_s, callback)
        try:
            yield
        finally:
            with self._lock:
                self._pending.pop(key, None)

    def _run(self) -> None:
        while True:
            time.sleep(_DEADLINE_POLL_INTERVAL_S)
            now = time.monotonic()
            # Called under the lock: once `call_after` has ended, its connection may belong to another request.
            with self._lock:
                for key in [key for key, (deadline, _) in self._pending.items() if deadline <= now]:
                    self._pending.pop(key)[1]()


_DEADLINE_POLL_INTERVAL_S = 0.5
_deadlines = _Deadlines()


def set_send_timeout(request: Request) -> None:
    """Drop clients that do not read their response, so that the sending thread becomes free again."""
    connection = request.environ.get("gunicorn.socket")
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            connection.settimeout(SEND_TIMEOUT_S)


def _shut_down_reading(connection: socket.socket) -> None:
    # The method of the plain socket: that of a TLS socket would drop the encryption and send the response in clear text.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RD)


@contextlib.contextmanager
def _socket_timeout(connection: socket.socket | None, timeout_s: float) -> Iterator[None]:
    if connection is None:
        yield
        return
    previous = connection.gettimeout()
    connection.settimeout(timeout_s)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(previous)


def disconnect_check(environ: dict[str, Any]) -> Callable[[], bool]:
    """A function that tells whether this request's client has closed its connection.

    Call it only after the body was read. It always returns False if the server does not expose its socket, or if the
    connection is encrypted (peeking would take data from the TLS layer): the request then runs to its end.
    """
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket) or environ.get("wsgi.url_scheme") == "https":
        return lambda: False
    return lambda: _is_closed(connection)


def _is_closed(connection: socket.socket) -> bool:
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(0):
            return False
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        return True
