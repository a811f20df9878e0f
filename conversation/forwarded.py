"""The response of an upstream on its way to the client."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from arbiter import UNKNOWN_SENDER, Sender
from conversation.directory import Target
from conversation.headers import Headers, response_headers
from conversation.problems import connection_problem
from conversation.routes import Route
from conversation.stream_errors import StreamErrors
from conversation.upstream_errors import (
    as_envelope,
    error_of,
    failed,
    in_dialect,
    is_error,
    is_readable,
    message_of,
    parse,
    text_of,
    unusable,
)
from errors import EaselError, RequestCancelled, UpstreamUnavailable, shorten
from http_connections import OpenResponse
from system_errors import shortage_as

log = logging.getLogger("easel.llm")

READ_BYTES = 64 * 1024
_MAX_ERROR_BYTES = 1_000_000
"""Of a response that is an error; a longer one is cut"""
_QUOTED_CHARS = 300
_ERROR_MARK = b'"error"'
"""In every error that is JSON, and hardly ever in an answer: in a text its quotes would be escaped"""
_EVENTS, _LINES = "text/event-stream", "application/x-ndjson"

Envelope = Callable[[EaselError], Mapping[str, Any]]
"""The JSON of an error"""


@dataclass(frozen=True)
class Client:
    """What is known of the client. `headers`: those of its request. `socket`: of its connection, None if unknown;
    `has_gone` tells whether it has closed it."""

    headers: Headers
    socket: socket.socket | None
    has_gone: Callable[[], bool]
    sender: Sender = UNKNOWN_SENDER
    """For the status"""
    ended: Callable[[], EaselError | None] = lambda: None
    """Why the request must end although its client is there; None as long as it may go on"""


class ForwardedBody:
    """The body of the response, as the client gets it. `close` it, also after an error: that ends the lease, and the
    upstream's work if the body was not read to its end."""

    def __init__(self, target: Target, route: Route, response: OpenResponse, envelope: Envelope) -> None:
        self.target, self.route, self.response = target, route, response
        self._envelope = envelope
        self._first = b""
        self._held = contextlib.ExitStack()
        self._check: Callable[[], None] = lambda: None
        kind = response.headers.get_content_type()
        self._errors: StreamErrors | None = None
        if kind in (_EVENTS, _LINES) and not self.is_encoded:
            self._errors = StreamErrors(
                route.dialect,
                has_events=kind == _EVENTS,
                upstream=target.upstream.name,
                clean=target.upstream.without_secrets,
            )

    @property
    def is_encoded(self) -> bool:
        """Whether it is compressed, although that was not asked for."""
        return self.response.headers.get("Content-Encoding", "identity").lower() != "identity"

    @property
    def may_change(self) -> bool:
        """Whether the client may get something else than the upstream sends."""
        return self._errors is not None

    def hold(self, held: contextlib.ExitStack, check: Callable[[], None]) -> None:
        """Close `held` with the body. `check` raises what has ended the request."""
        self._held, self._check = held, check

    def peek(self) -> bytes:
        """The first bytes. Raises UpstreamUnavailable, RequestCancelled."""
        if not self._first:
            self._first = self._read()
        return self._first

    def beginning(self) -> bytes:
        """The whole body if it is short and its length is known, else its first bytes. Raises as `peek`."""
        length = self.response.length
        while length is not None and len(self.peek()) < length <= READ_BYTES:
            self._first += self._read()
        return self.peek()

    def read_all(self) -> bytes:
        """The whole body, or its first megabyte. Raises UpstreamUnavailable, RequestCancelled."""
        content = bytearray(self.peek())
        while len(content) < _MAX_ERROR_BYTES and (data := self._read()):
            content += data
        self._first = b""
        return bytes(content)

    def unread(self, content: bytes) -> None:
        """Take back what `read_all` returned."""
        self._first = content

    def _read(self) -> bytes:
        try:
            return self.response.read1(READ_BYTES)
        except (OSError, HTTPException) as error:
            raise unavailable(self.target, error) from error

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._data()
        except RequestCancelled:
            pass
        except EaselError as seen:
            error = self._reason(seen)
            log.warning("a response was cut off: %s", error.message)
            if self._errors is None:
                # The client must see that the body is incomplete.
                raise ConnectionResetError(errno.ECONNRESET, error.message) from seen
            yield self._errors.cut_off(self._envelope(error))
        finally:
            self.close()

    def _reason(self, error: EaselError) -> EaselError:
        """Why the response ends with `error`: an upstream whose model is unloaded by force only closes the connection."""
        try:
            self._check()
        except EaselError as reason:
            return reason
        return error

    def _data(self) -> Iterator[bytes]:
        data, self._first = self._first or self._read(), b""
        while data:
            if self._errors is None:
                yield data
            elif passed := self._errors.feed(data):
                yield passed
            data = self._read()
        if self._errors is not None and (rest := self._errors.end()):
            yield rest

    def close(self) -> None:
        """See the class."""
        self._held.close()


@dataclass(frozen=True)
class Forwarded:
    """The response for the client. `length`: of the body, None if unknown."""

    status: int
    headers: list[tuple[str, str]]
    body: ForwardedBody
    length: int | None


class _Complete(ForwardedBody):
    """A body that was read."""

    def __init__(self, body: ForwardedBody, content: bytes) -> None:
        super().__init__(body.target, body.route, body.response, body._envelope)
        self._content = content

    def _data(self) -> Iterator[bytes]:
        yield self._content


def judge(body: ForwardedBody) -> Forwarded:
    """The response that begins with `body`. Raises UpstreamUnavailable, UpstreamFailed, SlotLoading, SlotNotReady if it is
    no answer."""
    response, target = body.response, body.target
    if error := unusable(target, response.status, response.headers):
        raise error
    headers = [
        (name, target.upstream.without_secrets(value))
        for name, value in response_headers(response.headers.items())
    ]
    if response.status >= 400:
        return _error_response(body, headers)
    kind = response.headers.get_content_type()
    if kind == "text/html" and not body.is_encoded:
        raise failed(target, "answered with a page", body.read_all().decode("utf-8", "replace"))
    if kind == "application/json" and not body.is_encoded and _ERROR_MARK in body.beginning():
        content = body.read_all()
        document = parse(content)
        if is_error(document):
            raise failed(target, f"answered {response.status} with an error", message_of(document))
        body.unread(content)
    return Forwarded(response.status, headers, body, None if body.may_change else response.length)


def _error_response(body: ForwardedBody, headers: list[tuple[str, str]]) -> Forwarded:
    response, target = body.response, body.target
    if body.is_encoded:
        raise failed(target, f"answered {response.status} with a compressed text that was not asked for")
    content = body.read_all()
    if problem := error_of(target, response.status, content):
        raise problem
    document = parse(content)
    if not is_readable(document, body.route.dialect):
        if document is None:
            document = {"message": shorten(text_of(content), _QUOTED_CHARS)}
        error = as_envelope(document, upstream=target.upstream.name, status=response.status)
        content = json.dumps(in_dialect(error, body.route.dialect)).encode()
        headers = [(name, value) for name, value in headers if name.lower() != "content-type"]
        headers.append(("Content-Type", "application/json"))
    text = target.upstream.without_secrets(content.decode("utf-8", "replace")).encode()
    return Forwarded(response.status, headers, _Complete(body, text), len(text))


def unavailable(target: Target, error: Exception) -> EaselError:
    """The error for a connection that failed."""
    if shortage := shortage_as(UpstreamUnavailable, error):
        return shortage
    reason = connection_problem(error, target.upstream)
    return UpstreamUnavailable(
        f"The upstream {target.upstream.name} at {target.upstream.url} {reason}.",
        upstream=target.upstream.name,
    )
