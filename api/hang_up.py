"""Has the client gone? A synchronous server only learns it by peeking at the connection."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any


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
