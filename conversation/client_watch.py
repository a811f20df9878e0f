"""Waits for an upstream's bytes, and notices meanwhile that the client has hung up."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable

from errors import RequestCancelled

_CHECK_INTERVAL_S = 0.5


class ClientWatch:
    """For `before_recv` of a connection to an upstream: returns as soon as something arrives. `client`: the socket of the
    client's connection; None if it is unknown. `timeout_s`: how long the upstream may be silent. `check` is called about
    twice a second and raises what ends the request.

    Raises RequestCancelled, TimeoutError, and what `check` raises.
    """

    def __init__(self, client: socket.socket | None, *, timeout_s: float, check: Callable[[], None]) -> None:
        self._client, self._timeout_s, self._check = client, timeout_s, check
        self._next_check = time.monotonic() + _CHECK_INTERVAL_S

    def __call__(self, upstream: socket.socket) -> None:
        if isinstance(upstream, ssl.SSLSocket) and upstream.pending():
            return
        poll = select.poll()
        poll.register(upstream, select.POLLIN)
        if self._client is not None and self._client.fileno() >= 0:
            poll.register(self._client, select.POLLRDHUP)
        began_at = time.monotonic()
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_CHECK_INTERVAL_S * 1000)}
            if self._client is not None and self._client.fileno() in ready:
                raise RequestCancelled("The client has closed the connection.")
            now = time.monotonic()
            if now >= self._next_check:
                self._next_check = now + _CHECK_INTERVAL_S
                self._check()
            if ready:
                return
            if now - began_at >= self._timeout_s:
                raise TimeoutError(f"nothing arrived for {self._timeout_s:g} s")
