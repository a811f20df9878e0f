"""One persistent WebSocket to ComfyUI. A thread reads it, puts every message into its job's inbox and never blocks on a
job: ComfyUI sends to all its clients in one loop, so a slow reader delays the other clients too."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import websocket

from bounded_socket import connect, tls
from deadline import remaining_s, time_limit
from engine.credentials import NO_CREDENTIALS, Credentials
from engine.frames import FrameSocket
from engine.http import access_denied, no_answer, proxy_failed
from engine.inbox import Inbox, SocketLost
from engine.messages import Event, Frame, parse_binary, parse_text
from errors import EngineUnreachable, EngineWithoutWebSocket
from system_errors import shortage_as

log = logging.getLogger("easel.engine")

_FEATURE_FLAGS = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
_MAX_UNREAD_PREVIEWS = 32


class Listener:
    """Connects on the first use, and again on the next use after a loss, each time with a new client id.

    A client id is never used twice: when the older of two sockets with the same id closes, ComfyUI drops the newer one.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        ping_interval_s: float,
        on_connect: Callable[[], None],
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._credentials = credentials
        self._ping_interval_s = ping_interval_s
        self._on_connect = on_connect
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._failures = 0
        self._last_failure: EngineUnreachable | None = None

    @property
    def received_at(self) -> float:
        """When bytes of a message came last, on the clock of time.monotonic; -inf without a connection."""
        connection = self._connection
        return -math.inf if connection is None else connection.received_at

    @contextlib.contextmanager
    def subscribe(self, prompt_id: str, inbox: Inbox) -> Iterator[Connection]:
        """Deliver the messages of this job to `inbox`; yields the connection, whose client id to submit with. Raises
        EngineUnreachable."""
        connection = self._subscribed_connection(prompt_id, inbox)
        try:
            yield connection
        finally:
            connection.unsubscribe(prompt_id)

    def connect(self) -> None:
        """Make sure that there is a connection. Raises EngineUnreachable."""
        self._with_connection(lambda connection: connection.is_open)

    def _subscribed_connection(self, prompt_id: str, inbox: Inbox) -> Connection:
        return self._with_connection(lambda connection: connection.subscribe(prompt_id, inbox))

    def _with_connection(self, use: Callable[[Connection], bool]) -> Connection:
        """The connection, after `use` of it; a new one if `use` is false, because the old one is closed."""
        failures = self._failures
        # Another thread may be connecting for as long as the engine does not answer.
        remaining = remaining_s()
        if not self._lock.acquire(timeout=-1 if math.isinf(remaining) else remaining):
            raise self._unreachable()
        try:
            if self._connection is not None and use(self._connection):
                return self._connection
            # Another thread failed to connect while this one waited for the lock. Trying again would make the waiting
            # threads time out one after another.
            if self._failures != failures and self._last_failure is not None:
                raise type(self._last_failure)(self._last_failure.message, **self._last_failure.details)
            self._connection = self._connect()
            use(self._connection)
            return self._connection
        finally:
            self._lock.release()

    def _unreachable(self) -> EngineUnreachable:
        return EngineUnreachable(f"ComfyUI at {self._url} does not answer.", url=self._url, slow=True)

    def _connect(self) -> Connection:
        try:
            connection = Connection(
                self._url, self._credentials, self._connect_timeout_s, self._ping_interval_s
            )
        except EngineUnreachable as error:
            self._last_failure = error
            self._failures += 1
            raise
        self._on_connect()
        return connection

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Connection:
    """One socket and the thread that reads it."""

    def __init__(
        self, url: str, credentials: Credentials, connect_timeout_s: float, ping_interval_s: float
    ) -> None:
        self.client_id = uuid.uuid4().hex
        self._ping_interval_s = ping_interval_s
        self._lock = threading.Lock()
        self._inboxes: dict[str, Inbox] = {}
        self._open = True
        self._executing: tuple[str, str | None] | None = None
        self._socket, self._frames = _open_socket(url, self.client_id, credentials, connect_timeout_s)
        self._thread = threading.Thread(target=self._read_loop, name="easel-engine-listener", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._socket.shutdown()  # type: ignore[no-untyped-call]
            raise shortage_as(EngineUnreachable, error) or error from error

    def subscribe(self, prompt_id: str, inbox: Inbox) -> bool:
        """False if the connection is closed: nothing would ever arrive."""
        with self._lock:
            if self._open:
                self._inboxes[prompt_id] = inbox
            return self._open

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def received_at(self) -> float:
        """When bytes of a message came last, on the clock of time.monotonic."""
        return self._frames.received_at

    def unsubscribe(self, prompt_id: str) -> None:
        with self._lock:
            self._inboxes.pop(prompt_id, None)

    def close(self) -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            self._socket.send_close()
        raw = self._socket.sock
        if raw is not None:  # the reader thread closes the socket when it ends
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=2)

    def _read_loop(self) -> None:
        try:
            self._socket.settimeout(self._ping_interval_s)
            awaiting_pong = False
            while True:
                try:
                    opcode, message = self._frames.next_message()
                except TimeoutError:
                    if awaiting_pong:
                        return
                    self._socket.ping()
                    awaiting_pong = True
                    continue
                awaiting_pong = False
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return
                if opcode == websocket.ABNF.OPCODE_PING:
                    self._socket.pong(message)
                self._deliver(opcode, message)
        except (OSError, websocket.WebSocketException) as error:
            log.debug("the WebSocket to ComfyUI closed: %s", error)
        finally:
            self._mark_closed()

    def _deliver(self, opcode: int, message: bytes) -> None:
        if opcode == websocket.ABNF.OPCODE_TEXT:
            event = parse_text(message)
            if event is not None:
                self._deliver_event(event)
        elif opcode == websocket.ABNF.OPCODE_BINARY:
            frame = parse_binary(message)
            if frame is not None:
                self._deliver_frame(frame)

    def _deliver_event(self, event: Event) -> None:
        if event.prompt_id is None:
            return
        if event.kind == "executing":
            node = event.data.get("node")
            self._executing = (event.prompt_id, node) if isinstance(node, str) else None
        inbox = self._inboxes.get(event.prompt_id)
        if inbox is not None:
            inbox.put(event, wakes=not _can_wait(event))

    def _deliver_frame(self, frame: Frame) -> None:
        # A frame without ids belongs to our job only while our job executes a node: ComfyUI runs one job at a time, and
        # sends the frames of jobs without a client id to all clients.
        if frame.prompt_id is None and self._executing is not None:
            frame = Frame(*self._executing, frame.mime, frame.data)
        inbox = self._inboxes.get(frame.prompt_id) if frame.prompt_id is not None else None
        if inbox is not None and (frame.mime == "image/png" or len(inbox) < _MAX_UNREAD_PREVIEWS):
            inbox.put(frame)

    def _mark_closed(self) -> None:
        with self._lock:
            self._open = False
            inboxes = list(self._inboxes.values())
        self._socket.shutdown()  # type: ignore[no-untyped-call]
        for inbox in inboxes:
            inbox.put(SocketLost())


def _can_wait(event: Event) -> bool:
    """Whether the job may learn of it with its next event: which nodes are cached, or that one starts, is used only when
    the job ends or is silent."""
    return event.kind == "execution_cached" or (
        event.kind == "executing" and event.data.get("node") is not None
    )


def _open_socket(
    url: str, client_id: str, credentials: Credentials, timeout_s: float
) -> tuple[websocket.WebSocket, FrameSocket]:
    """A WebSocket to send with, and the socket below it to read from. ComfyUI has registered it (its first `status`
    arrived), and it has asked for previews with ids. Takes at most `timeout_s`.

    Offers no compression: ComfyUI would deflate a picture of 3 MB in its event loop.
    """
    raw = None
    query = f"clientId={client_id}" + (f"&{credentials.query}" if credentials.query else "")
    try:
        with time_limit(timeout_s):
            raw = FrameSocket(_connect_tcp(url, timeout_s))
            connection = websocket.create_connection(
                f"{_websocket_url(url)}/ws?{query}",
                timeout=timeout_s,
                socket=raw,
                header=credentials.headers,
                suppress_origin=True,
                enable_multithread=True,
                skip_utf8_validation=True,
                redirect_limit=0,
            )
            connection.send(_FEATURE_FLAGS)
            connection.recv()
            return connection, raw
    except (OSError, websocket.WebSocketException) as error:
        # Only a socket that was connected came to the handshake.
        failure = shortage_as(EngineUnreachable, error) or (
            _handshake_failure(url, error, credentials) if raw else no_answer(url, error)
        )
        if raw is not None:
            raw.close()
        # Not `from error`: websocket-client quotes the response, which may repeat a token.
        raise failure from None


def _handshake_failure(url: str, error: Exception, credentials: Credentials) -> EngineUnreachable:
    if isinstance(error, TimeoutError | websocket.WebSocketTimeoutException):
        return no_answer(url, TimeoutError())
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        headers = getattr(error, "resp_headers", None) or {}
        return access_denied(url, status, headers.get("www-authenticate", ""), credentials)
    if status in (500, 502, 503, 504):
        return proxy_failed(url, status)
    is_redirect = type(error) is websocket.WebSocketException and "Redirect" in str(error)
    if status is not None or is_redirect:
        return _without_websocket(url, status)
    return EngineUnreachable(
        f"ComfyUI at {url} does not answer: no WebSocket at /ws, {type(error).__name__}.", url=url
    )


def _without_websocket(url: str, status: int | None) -> EngineWithoutWebSocket:
    reason = f"status {status}" if status else "a redirect"
    return EngineWithoutWebSocket(
        f"ComfyUI at {url} opens no WebSocket at /ws ({reason}): a proxy in front of it does not pass WebSockets. "
        f"{EngineWithoutWebSocket.remedy}",
        url=url,
        status=status,
    )


def _connect_tcp(url: str, timeout_s: float) -> socket.socket:
    """A connected TCP or TLS socket. websocket-client would take proxies from the environment if it connected
    itself."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    raw = connect(host, port, timeout_s)
    if not secure:
        return raw
    try:
        return tls(raw, host)
    except OSError:
        raw.close()
        raise


def _websocket_url(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme="wss" if parts.scheme == "https" else "ws")).rstrip("/")
