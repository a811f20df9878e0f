"""The client's connection: reading a body that may never come, and noticing that nobody is there any more.
A synchronous server only learns such things from the socket."""

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

BODY_PATIENCE_S = 15.0
"""How long nothing may come while a body is being read"""
BODY_AT_MOST_S = 180.0
"""How long a body may take that comes drop by drop: it holds a place of those that wait for pictures"""
SEND_PATIENCE_S = 60.0
"""How long a client may take for one piece of an answer, at most a megabyte"""
DISCARD_PATIENCE_S = 0.3
DISCARD_AT_MOST_S = 2.0


def read_body(request: Request, patience_s: float = BODY_PATIENCE_S) -> bytes:
    """The whole body. Raises BodyTimeout, InvalidRequest for a broken one, and werkzeug's RequestEntityTooLarge."""
    with reading(request, patience_s):
        return request.get_data(cache=False)


@contextlib.contextmanager
def reading(
    request: Request, patience_s: float = BODY_PATIENCE_S, at_most_s: float = BODY_AT_MOST_S
) -> Iterator[None]:
    """Read the body inside. Whatever keeps it from coming whole is BodyTimeout or InvalidRequest."""
    with _patience(request.environ, patience_s), _at_most(request.environ, at_most_s) as is_over:
        try:
            yield
            g.body_was_read = True
        except (RequestEntityTooLarge, EaselError):
            raise
        except Exception as error:
            if is_over():
                raise BodyTimeout(f"The body did not end within {at_most_s:g} s.") from error
            # werkzeug hides a socket's timeout behind an error of its own.
            if isinstance(error, TimeoutError) or isinstance(
                error.__cause__ or error.__context__, TimeoutError
            ):
                raise BodyTimeout(f"The body did not end, and nothing came for {patience_s:g} s.") from error
            # The server's own reader has its own errors for chunks that are none and clients that leave half-way.
            raise InvalidRequest("The body broke off or is not chunked as HTTP says.") from error


def discard_body(request: Request) -> None:
    """Of a request that is answered without its body: take what is there, and do not wait for what is not.

    Otherwise the server would hold a thread for seconds to read it, for everybody who sends half of one.
    """
    connection = request.environ.get("gunicorn.socket")
    has_body = request.content_length or "Transfer-Encoding" in request.headers
    if not isinstance(connection, socket.socket) or not has_body or g.get("body_was_read"):
        return
    # A timer, because one read of the server's goes on as long as single bytes keep coming.
    cut_off = threading.Timer(DISCARD_AT_MOST_S, _end_reading, [connection])
    cut_off.daemon = True
    cut_off.start()
    try:
        with _patience(request.environ, DISCARD_PATIENCE_S):
            while request.environ["wsgi.input"].read(65536):
                pass
    except Exception:
        _end_reading(connection)
    finally:
        cut_off.cancel()


@contextlib.contextmanager
def _at_most(environ: dict[str, Any], seconds: float) -> Iterator[Callable[[], bool]]:
    """End reading when the time is over; yields whether that was done. One read of the server's goes on as long as
    single bytes keep coming, so its own timeout is not enough."""
    connection = environ.get("gunicorn.socket")
    over = threading.Event()
    if not isinstance(connection, socket.socket):
        yield over.is_set
        return

    def end() -> None:
        over.set()
        _end_reading(connection)

    with _deadlines.watching(seconds, end):
        yield over.is_set


class _Deadlines:
    """Calls what is due, to about a second; one thread for a process, started when it is first needed: a timer for each
    request would cost more than reading most bodies."""

    def __init__(self) -> None:
        self._due: dict[object, tuple[float, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self, seconds: float, call: Callable[[], None]) -> Iterator[None]:
        key = object()
        with self._lock:
            self._due[key] = (time.monotonic() + seconds, call)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="easel-deadlines", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._due.pop(key, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            # Called under the lock: once `watching` has ended, its connection may be another request's.
            with self._lock:
                for key in [key for key, (when, _) in self._due.items() if when <= now]:
                    self._due.pop(key)[1]()


_LOOK_S = 0.5
_deadlines = _Deadlines()


def limit_sending(request: Request) -> None:
    """A client that does not read its answer loses it after a while, and the thread that sends it is free again."""
    connection = request.environ.get("gunicorn.socket")
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            connection.settimeout(SEND_PATIENCE_S)


def _end_reading(connection: socket.socket) -> None:
    # The plain socket's own method: that of a TLS socket would drop the encryption, and the answer go out in clear.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RD)


@contextlib.contextmanager
def _patience(environ: dict[str, Any], seconds: float) -> Iterator[None]:
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(seconds)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(before)


def hang_up_of(environ: dict[str, Any]) -> Callable[[], bool]:
    """A function that says whether this request's client has closed its connection.

    Ask only after the body was read. Where the server does not lend its socket, or the connection is encrypted
    (peeking would steal from the TLS layer), it is always False: the request then runs to its end.
    """
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket) or environ.get("wsgi.url_scheme") == "https":
        return lambda: False
    return lambda: _is_closed(connection)


def _is_closed(connection: socket.socket) -> bool:
    try:
        waiting = select.poll()
        waiting.register(connection, select.POLLIN)
        if not waiting.poll(0):
            return False
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        return True
