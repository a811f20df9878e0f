"""Waits for an upstream, and notices meanwhile that the client has hung up."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable

from errors import RequestCancelled

_CHECK_INTERVAL_S = 0.5
_CHECK_INTERVAL_MS = 1000 * _CHECK_INTERVAL_S


class ClientWatch:
    """For `before_recv` and `before_send` of a connection to an upstream. `client`: the socket of the client's connection;
    None if it is unknown. One that was closed for writing only counts as closed: HTTP clients close both ways, and a client
    that is gone looks the same. `timeout_s`: how long the upstream may neither send nor take anything. `check` is called
    about twice a second and raises what ends the request.

    The methods raise RequestCancelled, TimeoutError, and what `check` raises.
    """

    def __init__(self, client: socket.socket | None, *, timeout_s: float, check: Callable[[], None]) -> None:
        self._client, self._timeout_s, self._check = client, timeout_s, check
        self._next_check = time.monotonic() + _CHECK_INTERVAL_S
        self._poll: select.poll | None = None
        self._watched: tuple[int, int, int] = (-1, -1, 0)

    def until_readable(self, upstream: socket.socket) -> None:
        """Return as soon as something has arrived."""
        if not (isinstance(upstream, ssl.SSLSocket) and upstream.pending()):
            self._wait(upstream, select.POLLIN)

    def until_writable(self, upstream: socket.socket) -> None:
        """Return as soon as something can be sent."""
        self._wait(upstream, select.POLLOUT)

    def _wait(self, upstream: socket.socket, event: int) -> None:
        client = -1 if self._client is None else self._client.fileno()
        if self._watched != (watched := (upstream.fileno(), client, event)):
            self._watched, self._poll = watched, _new_poll(*watched)
        assert self._poll is not None
        waited_since: float | None = None
        while True:
            ready = self._poll.poll(_CHECK_INTERVAL_MS)
            now = time.monotonic()
            if now >= self._next_check:
                self._next_check = now + _CHECK_INTERVAL_S
                self._check()
            for descriptor, _ in ready:
                if descriptor == client:
                    raise RequestCancelled("The client has closed the connection.")
            if ready:
                return
            if waited_since is None:
                waited_since = now - _CHECK_INTERVAL_S
            if now - waited_since >= self._timeout_s:
                what = "nothing arrived" if event == select.POLLIN else "it accepted nothing"
                raise TimeoutError(f"{what} for {self._timeout_s:g} s")


def _new_poll(upstream: int, client: int, event: int) -> select.poll:
    """Kept for all reads of a request: there are thousands of them."""
    poll = select.poll()
    poll.register(upstream, event)
    if client >= 0:
        poll.register(client, select.POLLRDHUP)
    return poll
